"""One network of the zoo: kill channels, shrink, compare."""

import time
from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np
import timm
import torch
from torch import Tensor, nn

from ...errors import TraceError
from ...graph import ChannelGraph, channel_graph, clear_caches_, copy_model
from ...masks import Masks, apply_masks_, mask_group_channels_
from ...measure import count_macs, count_parameters
from ...shrinking import Plan, apply_plan_, check, gradient_difference, make_plan, plan_removal
from ...testing import randomize_, settle_
from .families import Member

MASK_KINDS = ("half", "random", "remember")
TRIES = 3
"""Sizes of the input with which a network may leave parameters without effect before the smallest is taken."""


@dataclass(frozen=True)
class Row:
    """What became of one network under one mask."""

    family: str
    model: str
    kill: str
    """"half": every second channel of every removable group, with everything that makes it heard.  "random": every
    channel with a probability drawn for its group, by its weights alone, so that biases and shifts go on.  "remember":
    "half" with layer norms that may remember what they lose, for networks that have layer norms."""
    verdict: str
    """"exact", or what went wrong and where."""
    input_size: int = 0
    groups: int = 0
    free_groups: int = 0
    killed: int = 0
    removed: int = 0
    again: int = 0
    """Found by planning a second time: where a grouped convolution was left with one group, its channels are freer."""
    parameters: tuple[int, int] = (0, 0)
    """Before and after."""
    macs: tuple[int, int] = (0, 0)
    max_rel_64: float = float("nan")
    max_rel_32: float = float("nan")
    noise_32: float = float("nan")
    """What float32 alone does to the masked network, relative as well."""
    max_rel_gradient: float | None = None
    """Of the parameters that survive, in training and evaluation mode; not for "random", where constants are left."""
    deaf: tuple[str, ...] = ()
    """Surviving parameters of which no element changes the output."""
    seconds: float = 0.0
    """Tracing, planning and shrinking, without the comparison."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why channels are not free, or stayed though dead, and of how many groups."""

    def to_dict(self) -> dict[str, object]:
        """JSON-able."""
        return asdict(self)


def run_trial(member: Member, kill: str, seed: int) -> Row:
    """Shrink one network; one that cannot be traced gets a row that says why."""
    family = member.family
    torch.manual_seed(seed)
    model = randomize_(timm.create_model(member.model), seed).double().eval()
    try:
        example = _input(model, member, seed)
    except TraceError as error:
        return Row(family, member.model, kill, f"not traced: {error}")
    began = time.perf_counter()
    graph = channel_graph(model, example, remember_norms=kill == "remember")
    seconds = time.perf_counter() - began
    masks, killed = mask_channels(model, graph, kill, seed)
    apply_masks_(model, masks)
    began = time.perf_counter()
    plan = plan_removal(model, graph)
    small = apply_plan_(copy_model(model), plan)
    seconds += time.perf_counter() - began
    result = check(model, small, example, rounds=1, seed=seed)
    again = make_plan(small, example, remember_norms=kill == "remember").removed
    verdict = "exact" if result.ok else f"different: {result}"
    return Row(
        family,
        member.model,
        kill,
        verdict,
        input_size=example.shape[-1],
        groups=len(graph.groups),
        free_groups=sum(not group.pinned for group in graph.groups),
        killed=killed,
        removed=plan.removed,
        again=again,
        parameters=(count_parameters(model), count_parameters(small)),
        macs=(_macs(model, example), _macs(small, example)),
        max_rel_64=result.max_rel_64,
        max_rel_32=result.max_rel_32,
        max_rel_gradient=None if kill == "random" else _gradients(model, small, plan, example, seed),
        noise_32=result.noise_32,
        deaf=parameters_without_effect(small, example, seed),
        seconds=seconds,
        reasons=dict(Counter(group.reason for group in plan.groups if group.reason)),
    )


def _input(model: nn.Module, member: Member, seed: int) -> Tensor:
    """The smallest input on which every parameter matters, or else that the network takes; norms settled on it."""
    found = None
    tried = 0
    for side in member.sizes:
        example = torch.zeros(2, member.channels, side, side, dtype=torch.float64)
        try:
            channel_graph(model, example)
        except TraceError:
            if side == member.sizes[-1] and found is None:
                raise
            continue
        settle_(model, example, seed)
        found = example if found is None else found
        tried += 1
        if not parameters_without_effect(model, example, seed):
            return example
        if tried == TRIES:
            break
    assert found is not None
    settle_(model, found, seed)
    return found


def mask_channels(model: nn.Module, graph: ChannelGraph, kill: str, seed: int) -> tuple[Masks, int]:
    """Masks that kill channels of every removable group, and how many; no axis loses all."""
    draw = np.random.default_rng(seed)
    masks: Masks = {}
    killed = 0
    gone = np.zeros(graph.num_channels, np.bool_)
    for group in graph.groups:
        if group.pinned or len(group) < 2:
            continue
        dead = np.arange(len(group)) % 2 == 1
        if kill == "random":
            dead = draw.random(len(group)) < draw.uniform(0.1, 0.9)
            dead[draw.integers(len(group))] = False
        both = gone.copy()
        both[graph.with_members(group.channels[dead])] = True
        if any(both[graph.axes[axis]].all() for axis in group.axes):  # with those of heads that are gone already
            continue
        gone = both
        mask_group_channels_(masks, model, graph, group, group.channels[dead])
        killed += int(dead.sum())
    if kill == "random":
        masks = {name: {"weight": own["weight"]} for name, own in masks.items() if own.get("weight", _NONE).dim() > 1}
    return masks, killed


_NONE = torch.empty(0)


def parameters_without_effect(model: nn.Module, example: Tensor, seed: int) -> tuple[str, ...]:
    """Parameters of which no element changes the output on random inputs: a comparison says nothing about them."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(example.shape, generator=generator, dtype=torch.float64)
    clear_caches_(model)
    parameters = {name: parameter.requires_grad_() for name, parameter in model.named_parameters()}
    output = model(inputs)
    weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    gradients = torch.autograd.grad((output * weights).sum(), list(parameters.values()), allow_unused=True)
    clear_caches_(model)  # tables made with gradients
    return tuple(
        name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None or not gradient.any()
    )


def _gradients(model: nn.Module, small: nn.Module, plan: Plan, example: Tensor, seed: int) -> float:
    modes = (True, False)
    return max(gradient_difference(model, small, plan, example, training=mode, seed=seed) for mode in modes)


def _macs(model: nn.Module, example: Tensor) -> int:
    return count_macs(model, example[:1])
