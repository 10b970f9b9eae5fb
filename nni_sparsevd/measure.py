"""Sizes and times of networks, measured alike for all of them."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, final

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

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
    flops = _count_flops(model, as_arguments(example_inputs))
    return sum(flops.get("Global", {}).values()) // 2


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Have torch compute on so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class LayerCost:
    """What a layer costs in a forward pass of its network."""

    macs: int
    """Multiply-accumulates, as `count_macs` counts them."""
    latency_ms: float
    """Median milliseconds."""


def measure_layers(
    models: dict[str, nn.Module], example_inputs: Inputs, rounds: int = 15, threads: int = 1
) -> dict[str, dict[str, LayerCost]]:
    """Measure what each layer costs, of networks side by side, which take turns as in `measure_latencies`.

    Args:
        models: Name -> network; they run in evaluation mode, and their modes are restored.
        example_inputs: What the networks are called with: a tensor, a tuple, a dict of keywords, or (args, kwargs).
        rounds: How often each network is timed.
        threads: Threads of torch; the number is restored.

    Returns:
        Name of the network -> name of each module that owns parameters and runs, but the network itself -> its cost,
        that of the modules in it included.  A layer that runs several times costs their sum.
    """
    arguments = as_arguments(example_inputs)
    timers = {name: _LayerTimer(model) for name, model in models.items()}
    try:
        with use_threads(threads), evaluation_mode(*models.values()), torch.inference_mode():
            # The first round warms the caches up, and is not counted.
            for _ in range(rounds + 1):
                for name, model in models.items():
                    timers[name].time(model, arguments)
    finally:
        for timer in timers.values():
            timer.remove_hooks()
    costs: dict[str, dict[str, LayerCost]] = {}
    for name, model in models.items():
        flops = _count_flops(model, arguments)
        root = type(model).__name__
        costs[name] = {}
        for layer, seconds in timers[name].rounds.items():
            macs = sum(flops.get(f"{root}.{layer}", {}).values()) // 2
            costs[name][layer] = LayerCost(macs, 1e3 * statistics.median(seconds[1:]))
    return costs


@final
class _LayerTimer:
    """Times the modules of a network that own parameters, by hooks."""

    def __init__(self, model: nn.Module) -> None:
        self.rounds: dict[str, list[float]] = {}
        """Name of each layer that runs -> its seconds in each round."""
        self._handles: list[RemovableHandle] = []
        self._began: list[float] = []
        """When the layers began that run at this moment; the innermost is the last."""
        for name, module in model.named_modules():
            if name and any(True for _ in module.parameters(recurse=False)):
                self._handles.append(module.register_forward_pre_hook(self._begin))
                self._handles.append(module.register_forward_hook(partial(self._end, name)))

    def time(self, model: nn.Module, arguments: CallArguments) -> None:
        """Run the network once, as one more round."""
        for seconds in self.rounds.values():
            seconds.append(0.0)
        arguments.call(model)

    def remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, module: nn.Module, inputs: Any) -> None:
        self._began.append(time.perf_counter())

    def _end(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self.rounds.setdefault(name, [0.0])[-1] += time.perf_counter() - self._began.pop()


def _count_flops(model: nn.Module, arguments: CallArguments) -> dict[str, dict[Any, int]]:
    """FLOPs of a forward pass by operator: of each module under its class and name, and of all under "Global"."""
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
            arguments.call(model)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for parameter in learning:
            parameter.requires_grad_(True)
    return dict(counter.get_flop_counts())


def measure_latencies(
    models: dict[str, nn.Module],
    example_inputs: Inputs,
    rounds: int = 30,
    threads: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Measure the latency of networks side by side.

    The networks take turns, so that a drift of the machine's speed hits all alike. Each round runs every network for
    about a millisecond or once, whichever is longer.

    Args:
        models: Name -> network; they run in evaluation mode, and their modes are restored.
        example_inputs: What the network is called with: a tensor, a tuple, a dict of keywords, or (args, kwargs).
        rounds: How often each network is timed.
        threads: Threads of torch; the number is restored.
        clock: Gives seconds. `time.process_time` leaves out what other processes take of the machine; it is the sum
            over all threads, so it is for one. Networks on another device than the CPU are timed by the wall clock.

    Returns:
        Name -> median milliseconds of a forward pass.
    """
    arguments = as_arguments(example_inputs)
    if _are_on_accelerator(arguments):
        clock = time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in models}
    repeats: dict[str, int] = {}
    with use_threads(threads), evaluation_mode(*models.values()), torch.inference_mode():
        for name, model in models.items():
            arguments.call(model)
            repeats[name] = _count_repeats(model, arguments, clock)
        for _ in range(rounds):
            for name, model in models.items():
                times[name].append(_measure_seconds(model, arguments, repeats[name], clock))
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
    return lambda model: measure_latencies({"": model}, example, rounds=15, clock=time.process_time)[""]


def _count_repeats(model: nn.Module, arguments: CallArguments, clock: Callable[[], float]) -> int:
    """How many calls of a network take a millisecond or more."""
    # What seems to take two ticks of a clock takes more than one, so that no later turn seems to take none.
    enough = max(1e-3, 2 * _measure_tick(clock))
    calls = 1
    while min(_measure_seconds(model, arguments, calls, clock) for _ in range(3)) * calls < enough:
        calls *= 2
    return calls


def _measure_tick(clock: Callable[[], float]) -> float:
    """By how many seconds a clock moves at once."""
    began = now = clock()
    while now == began:
        now = clock()
    return now - began


def _measure_seconds(model: nn.Module, arguments: CallArguments, repeats: int, clock: Callable[[], float]) -> float:
    """Mean seconds of a forward pass."""
    returns_early = _are_on_accelerator(arguments)  # before a call is computed
    began = clock()
    for _ in range(repeats):
        model(*arguments.args, **arguments.kwargs)  # not `call`, which takes time of its own to copy containers
    if returns_early:
        torch.accelerator.synchronize()
    return (clock() - began) / repeats


def _are_on_accelerator(arguments: CallArguments) -> bool:
    return any(tensor.device.type not in ("cpu", "meta") for tensor in arguments.tensors)
