"""Sizes and times of networks, measured alike for all of them."""

import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .graph import evaluation_mode

CostKind = Literal["macs", "parameters", "latency"]


def count_parameters(model: nn.Module) -> int:
    """Scalars in all parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one forward pass of `example`: half the FLOPs that torch counts.

    Torch counts matrix products, convolutions and attention; normalisation, activations and additions are not in it.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCounterMode(display=False)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:  # the counter's own hooks fail where a block is given a parameter that learns
        parameter.requires_grad_(False)
    try:  # fused attention on the CPU has no formula and would count as nothing: take it apart
        with evaluation_mode(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for parameter in learning:
            parameter.requires_grad_(True)
    return int(counter.get_total_flops() // 2)


def measure_latencies(
    models: dict[str, nn.Module], example: Tensor, rounds: int = 30, threads: int = 1
) -> dict[str, float]:
    """Median milliseconds of a forward pass of each network on `example`, interleaved so that drift hits all alike.

    Each round runs every network for about a millisecond or once, whichever is longer, on `threads` threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    times: dict[str, list[float]] = {name: [] for name in models}
    repeats = {}
    try:
        with evaluation_mode(*models.values()), torch.inference_mode():
            for name, model in models.items():
                model(example)
                repeats[name] = max(1, round(1e-3 / _seconds(model, example, 1)))
            for _ in range(rounds):
                for name, model in models.items():
                    times[name].append(_seconds(model, example, repeats[name]))
    finally:
        torch.set_num_threads(before)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def cost_function(kind: CostKind, example_inputs: Tensor) -> Callable[[nn.Module], float]:
    """The function that measures the cost of a network, as a budget wants it.

    Args:
        kind: What is measured: multiply-accumulates, parameters, or the latency on one thread in milliseconds.
        example_inputs: A batch of inputs; the network is measured on the first one.

    Returns:
        A function: network -> cost.

    """
    example = example_inputs[:1]
    if kind == "parameters":
        return count_parameters
    if kind == "macs":
        return lambda model: count_macs(model, example)
    return lambda model: measure_latencies({"": model}, example, rounds=15)[""]


def _seconds(model: nn.Module, example: Tensor, repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        model(example)
    return (time.perf_counter() - began) / repeats
