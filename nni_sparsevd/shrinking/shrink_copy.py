"""Masked network in, smaller network out, compared before it is handed over."""

from torch import nn

from ..convert import bake_
from ..errors import ShrinkError
from ..graph import ChannelGraph, Inputs, channel_graph, copy_model
from ..masks import Masks
from .apply import apply_plan_
from .comparison import CheckResult, check
from .plan import Plan
from .planning import plan_removal


def shrink(
    model: nn.Module,
    example_inputs: Inputs,
    masks: Masks | None = None,
    *,
    round_to: int = 1,
    remember_norms: bool = False,
) -> tuple[nn.Module, Plan]:
    """Remove every channel that can be removed exactly; returns the smaller network and the account of what went.

    Any network will do: a variational one is baked first, `masks` (NNI's format) are multiplied in, and plain zeros
    in the weights count as they are.  `model` itself is untouched.  The result has the original classes, and in
    evaluation mode the original outputs, which is measured before it is returned.  `round_to` is the multiple of
    channels to leave, where there are that many, as some hardware likes it.

    A layer norm mixes channels, so without one of them it would give other values: by default its channels stay.  With
    `remember_norms` they may go where they are constant; the norm becomes a `RememberingLayerNorm`, which knows what it
    lost, and the only module whose class is not the original one.

    Raises `TraceError` when the network cannot be traced, `MaskError` for masks that do not fit, `SettingError` for a
    `round_to` below 1, `ShrinkError` when the smaller network does not run or gives other outputs (none known: please
    report it).
    """
    masked = bake_(copy_model(model), masks)
    graph = channel_graph(masked, example_inputs, remember_norms=remember_norms)
    small, plan, _ = shrink_masked(masked, graph, example_inputs, round_to)
    return small, plan


def shrink_masked(
    masked: nn.Module, graph: ChannelGraph, example_inputs: Inputs, round_to: int = 1
) -> tuple[nn.Module, Plan, CheckResult]:
    """`shrink` for a network that is baked and masked already; also returns the comparison with it."""
    plan = plan_removal(masked, graph, round_to)
    small = apply_plan_(copy_model(masked), plan)
    try:
        result = check(masked, small, example_inputs, rounds=1)
    except RuntimeError as error:
        raise ShrinkError(
            f"the shrunk {type(masked).__name__} does not run: {error}; a size written in its forward? "
            f"The plan was:\n{plan}"
        ) from error
    if not result.ok:
        raise ShrinkError(f"the shrunk {type(masked).__name__} gives other outputs, {result}; the plan was:\n{plan}")
    return small, plan, result
