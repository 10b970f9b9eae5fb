"""One trial of the zoo: mask channels of a network, shrink it, and compare the two."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...convert import find_gateable_groups
from ...errors import TraceError
from ...graph import (
    CallArguments,
    ChannelGraph,
    Inputs,
    as_arguments,
    channel_graph,
    clear_caches_,
    name_leaves,
)
from ...masks import Masks, apply_masks_, mask_group_channels_
from ...measure import count_macs, count_parameters
from ...settings import PosteriorSettings
from ...shrinking import Plan, apply_plan, check, gradient_difference, make_plan, plan_removal
from ...testing import draw_like, randomize_, settle_
from .families import Member

MASK_KINDS = ("half", "random", "remember")
"""Kinds of masks; see `Row.mask_kind`."""
TRIES = 3
"""Number of input sizes that may leave parameters without effect before the smallest is taken all the same."""
LARGEST_IN_64 = 2 * 10**8
"""Parameters of the largest network that is tried in float64: a larger one takes gibibytes several times over."""
SAME_BOXES = 1e-8
"""Relative differences between boxes up to this are rounding, in float64."""
KEYS_IN_FILES = {"mask_kind": "kill", "masked": "killed", "without_effect": "deaf"}
"""Fields of `Row` whose keys in files differ from their names: published results have these keys."""


@dataclass(frozen=True)
class Row:
    """What became of one network under one kind of masks."""

    family: str
    """Name of the architecture module of timm."""
    model: str
    """Name of the network in timm."""
    mask_kind: str
    """"half": every second channel of every removable group, with all parameters that write it or shift it.
    "random": every channel with a probability that is drawn for its group, by its weights alone, so that its biases and
    shifts stay and it carries a constant. "remember": "half" with layer norms that may remember the channels that they
    lose, for networks that have layer norms."""
    verdict: str
    """"exact", or what went wrong and where."""
    input_size: int = 0
    """Side of the images."""
    groups: int = 0
    """Channel groups."""
    free_groups: int = 0
    """Channel groups that are not pinned."""
    free_channels: int = 0
    """Channels of these groups, counted without norms that remember; left out of files where that was not counted."""
    gated_channels: int = 0
    """Those of them that `sparsify_` gives a gate."""
    without_gate: dict[str, int] = field(default_factory=dict)
    """Why the others have none -> number of channels."""
    masked: int = 0
    """Masked channels."""
    removed: int = 0
    """Removed channels."""
    again: int = 0
    """Channels that planning a second time would remove: where a grouped convolution is left with one group, its
    channels are freer than before."""
    parameters: tuple[int, int] = (0, 0)
    """Number of parameters before and after."""
    macs: tuple[int, int] = (0, 0)
    """Multiply-accumulates of one image before and after."""
    max_rel_64: float = float("nan")
    """Largest difference between the outputs in float64, as a part of the largest output."""
    max_rel_32: float = float("nan")
    """The same in float32."""
    noise_32: float = float("nan")
    """What float32 by itself does to the masked network's outputs, as a part of the largest output."""
    max_rel_gradient: float | None = None
    """Largest difference between the gradients of the parameters that survive, in training and evaluation mode, as a
    part of the largest gradient; None for "random", whose constants have gradients that the small network lacks, and
    for networks that are not in float64."""
    without_effect: tuple[str, ...] = ()
    """Names of the surviving parameters of which no element changes the output."""
    seconds: float = 0.0
    """Time to trace, plan and shrink, without the comparison."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Why channels are pinned, or stayed though dead -> number of groups."""
    max_rel_boxes: float | None = None
    """Largest difference between the boxes and scores of a whole detector, as a part of the largest value of each kind;
    None for everything else, and left out of files."""
    commit: str | None = None
    """Commit of the code that made the row: a table may hold rows of several. Left out of files where it is unknown."""

    def to_dict(self) -> dict[str, Any]:
        """The row as it is in a file."""
        values = {KEYS_IN_FILES.get(name, name): value for name, value in asdict(self).items()}
        for name in ("max_rel_boxes", "commit"):
            if values[name] is None:
                del values[name]
        if not self.free_channels:
            for name in ("free_channels", "gated_channels", "without_gate"):
                del values[name]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Row":
        """Read a row of a file."""
        names = {key: name for name, key in KEYS_IN_FILES.items()}
        return cls(**{names.get(key, key): value for key, value in values.items()})


def run_trial(member: Member, mask_kind: str, seed: int) -> Row:
    """Mask channels of a network, shrink it, and compare the two.

    Args:
        member: The network, and the inputs to try with it.
        mask_kind: One of `MASK_KINDS`.
        seed: Seed of weights, masks and inputs.

    Returns:
        The row; for a network that cannot be traced it says why.
    """
    torch.manual_seed(seed)
    # 1. Random norms and biases, because fresh networks hide mistakes: many start with zeros in their last norms.
    # 2. In float64, because there an exact removal is exact to 1e-10, far below any mistake.
    # 3. A large network stays in float32, and is compared in float64 all the same: folded biases were rounded once, so
    #    it is exact to 1e-6.  Its gradients, as large as itself several times, are not compared.
    model = randomize_(timm.create_model(member.model), seed).eval()
    is_large = count_parameters(model) > LARGEST_IN_64
    if not is_large:
        model = model.double()
    try:
        example = _find_input(model, member, seed)
    except TraceError as error:
        return Row(member.family, member.model, mask_kind, f"not traced: {error}")
    row = Row(member.family, member.model, mask_kind, "")
    return shrink_and_compare(row, model, example, seed, modes=() if is_large else (True, False))


def shrink_and_compare(
    row: Row,
    model: nn.Module,
    example_inputs: Inputs,
    seed: int,
    modes: Sequence[bool] = (False,),
    compare_boxes: Callable[..., float] | None = None,
) -> Row:
    """Mask channels of a network that is ready for it, shrink it, and compare the two.

    Args:
        row: The names of the network and the kind of masks.
        model: The network, in evaluation mode, and in float64 if it is not large; its weights are masked in place.
        example_inputs: What it is called with.
        seed: Seed of masks and inputs.
        modes: Whether the gradients are compared in training mode (True), in evaluation mode, or both.  Training mode
            says nothing about a network with dropout.  None of them for a network that is not in float64.
        compare_boxes: For a detector, the difference of its boxes: called with both networks and the images.

    Returns:
        The row with everything that was measured.
    """
    example = as_arguments(example_inputs)
    remember_norms = row.mask_kind == "remember"
    started = time.perf_counter()
    graph = channel_graph(model, example, remember_norms=remember_norms)
    tracing_seconds = time.perf_counter() - started
    masks, masked = mask_channels(model, graph, row.mask_kind, seed)
    apply_masks_(model, masks)
    del masks  # as large as the network
    started = time.perf_counter()
    plan = plan_removal(model, graph)
    small = apply_plan(model, plan)
    shrinking_seconds = time.perf_counter() - started
    result = check(model, small, example, rounds=1, seed=seed)
    gradient = None
    if row.mask_kind != "random" and modes:
        gradient = _compare_gradients(model, small, plan, example, seed, modes)
    boxes = None if compare_boxes is None else compare_boxes(model, small, example.tensors[0])
    sample = example.map_tensors(lambda value: value[:1])
    return replace(
        count_gates(row, model, graph),
        verdict="exact" if result.ok and (boxes or 0.0) < SAME_BOXES else f"different: {result}, boxes {boxes}",
        input_size=example.tensors[0].shape[-1],
        groups=len(graph.groups),
        free_groups=sum(not group.pinned for group in graph.groups),
        masked=masked,
        removed=plan.removed,
        again=make_plan(small, example, remember_norms=remember_norms).removed,
        parameters=(count_parameters(model), count_parameters(small)),
        macs=(count_macs(model, sample), count_macs(small, sample)),
        max_rel_64=result.max_rel_64,
        max_rel_32=result.max_rel_32,
        max_rel_gradient=gradient,
        noise_32=result.noise_32,
        without_effect=find_parameters_without_effect(small, example, seed) if modes else (),
        seconds=tracing_seconds + shrinking_seconds,
        reasons=dict(Counter(group.reason for group in plan.groups if group.reason)),
        max_rel_boxes=boxes,
    )


def _compare_gradients(
    model: nn.Module, small: nn.Module, plan: Plan, example: CallArguments, seed: int, modes: Sequence[bool]
) -> float:
    """The largest difference of the gradients in several modes."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        modes = modes[:1]  # nothing else has a mode in `gradient_difference`
    return max(gradient_difference(model, small, plan, example, training=mode, seed=seed) for mode in modes)


def count_gates(row: Row, model: nn.Module, graph: ChannelGraph) -> Row:
    """Count the free channels of a network, and those of them that can have a gate; not with norms that remember.

    Args:
        row: The names of the network and the kind of masks.
        model: The network; it stays as it is.
        graph: Its channel graph.

    Returns:
        The row with the counts.
    """
    if row.mask_kind == "remember":  # `sparsify_` does not ask for such norms
        return row
    free, gated = 0, 0
    without_gate: Counter[str] = Counter()
    for silencing in find_gateable_groups(model, graph, PosteriorSettings()):
        channels = len(silencing.group)
        free += channels
        if silencing.obstacle:
            without_gate[silencing.obstacle] += channels
        else:
            gated += channels
    return replace(row, free_channels=free, gated_channels=gated, without_gate=dict(without_gate))


def _find_input(model: nn.Module, member: Member, seed: int) -> Tensor:
    """An input on which the comparison says much, (2, channels, side, side), with the norms settled on it.

    1. A parameter without effect on the output is not tested. On small images there are such parameters, where a
       feature map has shrunk to one position. So the smallest input on which every parameter has an effect is taken.
    2. Some networks have parameters without effect on every input. After a few sizes the smallest is taken.
    """
    smallest = None
    tried = 0
    for side in member.sizes:
        example = torch.zeros(2, member.channels, side, side, dtype=next(model.parameters()).dtype)
        try:
            channel_graph(model, example)
        except TraceError:
            if side == member.sizes[-1] and smallest is None:
                raise
            continue
        settle_(model, example, seed)
        if smallest is None:
            smallest = example
        if len(member.sizes) == 1:
            return example
        tried += 1
        if not find_parameters_without_effect(model, example, seed):
            return example
        if tried == TRIES:
            break
    assert smallest is not None
    settle_(model, smallest, seed)
    return smallest


def mask_channels(model: nn.Module, graph: ChannelGraph, mask_kind: str, seed: int) -> tuple[Masks, int]:
    """Mask channels of every removable group, but never all channels of an axis.

    Args:
        model: The network; it stays as it is.
        graph: Its channel groups.
        mask_kind: One of `MASK_KINDS`.
        seed: Seed of "random".

    Returns:
        The masks, and the number of masked channels.
    """
    draw = np.random.default_rng(seed)
    masks: Masks = {}
    masked = 0
    removed = np.zeros(graph.num_channels, np.bool_)
    for group in graph.groups:
        if group.pinned or len(group) < 2:
            continue
        dead = _choose_channels(draw, len(group), mask_kind)
        # A channel may share an axis with channels of other groups, heads for example, that are masked already.
        removed_with_group = removed.copy()
        removed_with_group[graph.with_members(group.channels[dead])] = True
        if any(removed_with_group[graph.axes[axis]].all() for axis in group.axes):
            continue
        removed = removed_with_group
        mask_group_channels_(masks, model, graph, group, group.channels[dead])
        masked += int(dead.sum())
    if mask_kind == "random":
        masks = _keep_weight_masks(masks)
    return masks, masked


def _choose_channels(draw: np.random.Generator, count: int, mask_kind: str) -> NDArray[np.bool_]:
    """Which channels of a group are masked, (count,); at least one is not."""
    if mask_kind != "random":
        every_second: NDArray[np.bool_] = np.arange(count) % 2 == 1
        return every_second
    dead: NDArray[np.bool_] = draw.random(count) < draw.uniform(0.1, 0.9)
    dead[draw.integers(count)] = False
    return dead


def _keep_weight_masks(masks: Masks) -> Masks:
    """The masks of weights of more than one dimension: biases, and scales and shifts of norms, stay."""
    weight_masks: Masks = {}
    for name, targets in masks.items():
        if "weight" in targets and targets["weight"].dim() > 1:
            weight_masks[name] = {"weight": targets["weight"]}
    return weight_masks


def find_parameters_without_effect(model: nn.Module, example: Inputs, seed: int) -> tuple[str, ...]:
    """Names of the parameters of which no element changes the output on random inputs.

    A comparison of outputs says nothing about these parameters.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = as_arguments(example).map_tensors(lambda value: draw_like(value, generator))
    clear_caches_(model)
    parameters = {name: parameter.requires_grad_() for name, parameter in model.named_parameters()}
    sums = []
    for _, output in name_leaves(inputs.call(model)):
        if isinstance(output, Tensor) and output.requires_grad:
            # Random weights of the outputs: in a plain sum of outputs behind a softmax, all gradients would be zero.
            weights = torch.randn(output.shape, generator=generator, dtype=torch.float64)
            sums.append((output * weights).sum())
    gradients = torch.autograd.grad(sums, list(parameters.values()), allow_unused=True)
    clear_caches_(model)  # of tables that this pass has made, with its graph
    without_effect = []
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is None or not gradient.any():
            without_effect.append(name)
    return tuple(without_effect)
