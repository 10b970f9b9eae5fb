"""Sizes and times of networks, measured alike for all of them."""

import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .graph import CallArguments, Inputs, as_arguments, evaluation_mode, take_first_sample

CostKind = Literal["macs", "parameters", "latency"]


def count_parameters(model: nn.Module) -> int:
    """Count the scalars in all parameters of a network; shared parameters count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, example_inputs: Inputs) -> int:
    """Count the multiply-accumulates of one forward pass: half the FLOPs that torch counts.

    Torch counts matrix products, convolutions and attention; normalization, activations and additions are not counted.

    Args:
        model: The network; it runs in evaluation mode, and its mode is restored.
        example_inputs: What the network is called with, tensors with their batch dimension; see `as_arguments`.

    Returns:
        Multiply-accumulates for the whole batch.
    """
    from torch.utils.flop_counter import FlopCounterMode  # a tenth of the time that importing this package takes

    # 1. The fast path of nn.MultiheadAttention is a single kernel that the counter does not know.
    # 2. Fused attention on the CPU has no formula and would count as nothing: the MATH backend runs its two products.
    # 3. The counter's own hooks fail where a block is given a parameter that learns.
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    counter = FlopCounterMode(display=False)
    try:
        with evaluation_mode(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            as_arguments(example_inputs).call(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for parameter in learning:
            parameter.requires_grad_(True)
    return int(counter.get_total_flops() // 2)


def measure_latencies(
    models: dict[str, nn.Module], example_inputs: Inputs, rounds: int = 30, threads: int = 1
) -> dict[str, float]:
    """Measure the latency of networks side by side.

    The networks take turns, so that a drift of the machine's speed hits all alike. Each round runs every network for
    about a millisecond or once, whichever is longer.

    Args:
        models: Name -> network; they run in evaluation mode, and their modes are restored.
        example_inputs: What the network is called with: a tensor, a tuple, a dict of keywords, or (args, kwargs).
        rounds: How often each network is timed.
        threads: Threads of torch; the number is restored.

    Returns:
        Name -> median milliseconds of a forward pass.
    """
    arguments = as_arguments(example_inputs)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    times: dict[str, list[float]] = {name: [] for name in models}
    repeats: dict[str, int] = {}
    try:
        with evaluation_mode(*models.values()), torch.inference_mode():
            for name, model in models.items():
                arguments.call(model)
                repeats[name] = max(1, round(1e-3 / _measure_seconds(model, arguments, 1)))
            for _ in range(rounds):
                for name, model in models.items():
                    times[name].append(_measure_seconds(model, arguments, repeats[name]))
    finally:
        torch.set_num_threads(before)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def cost_function(kind: CostKind, example_inputs: Inputs) -> Callable[[nn.Module], float]:
    """The function that measures the cost of a network, as a budget wants it.

    Args:
        kind: What is measured: multiply-accumulates, parameters, or the latency on one thread in milliseconds.
        example_inputs: What the network is called with; of one tensor the first sample is measured, else all of it.

    Returns:
        A function: network -> cost.

    """
    example = take_first_sample(example_inputs)
    if kind == "parameters":
        return count_parameters
    if kind == "macs":
        return lambda model: count_macs(model, example)
    return lambda model: measure_latencies({"": model}, example, rounds=15)[""]


def _measure_seconds(model: nn.Module, arguments: CallArguments, repeats: int) -> float:
    """Mean seconds of a forward pass."""
    began = time.perf_counter()
    for _ in range(repeats):
        model(*arguments.args, **arguments.kwargs)
    return (time.perf_counter() - began) / repeats
