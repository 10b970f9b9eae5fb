"""Masked network in, smaller network out, compared before it is handed over."""

import torch
from torch import nn

from ..convert import bake_
from ..errors import ModelError, ShrinkError
from ..graph import (
    ChannelGraph,
    Inputs,
    as_arguments,
    channel_graph,
    copy_model,
    find_source_of_nan,
    named_states,
    require_numbers,
    require_parameters,
    require_traceable,
)
from ..masks import Masks
from .apply import apply_plan
from .comparison import CheckResult, check, find_half_type
from .plan import Plan
from .planning import plan_removal
from .running import as_numbers_of, remembers_calls, runs_as


def shrink(
    model: nn.Module,
    example_inputs: Inputs,
    masks: Masks | None = None,
    *,
    round_to: int = 1,
    remember_norms: bool = False,
) -> tuple[nn.Module, Plan]:
    """Make a smaller network that computes the same: every channel is removed that can be removed exactly.

    Any network will do, from whatever pruner: the zeros in its weights are the only evidence.  The smaller network has
    the original classes, and in evaluation mode the original outputs, for every input size that the network accepts;
    that is measured before it is returned.

    Args:
        model: A network with zeros in its weights, or a variational one, which is baked first.  It is left as it is.
        example_inputs: What `model` is called with: a tensor, a tuple of arguments, a dict of keyword arguments, or a
            pair (args, kwargs), with numbers, None, lists, dicts and dataclasses in any nesting.
        masks: Masks in NNI's format, {module: {parameter: tensor}}, each in the shape of its parameter.  They are
            multiplied in first.  For a variational network they replace the decision of its posteriors.
        round_to: What is left of each channel group is a multiple of this number of channels, where the group had that
            many: dead channels are kept to fill it up, as some hardware is faster then.
        remember_norms: Whether a norm may lose channels.  It mixes its channels, so without one of them it would give
            other values: by default they are kept.  If True, those that are constant are removed, and a layer norm
            becomes a `RememberingLayerNorm`, any other a `PaddedNorm`; other modules keep their classes.

    Returns:
        The smaller network, and the plan: what was removed, what was kept, and why.

    Raises:
        ModelError: The network is quantized, scripted, exported, lazy, without parameters or their data, on several
            devices, or cannot be copied or compared; its parameters, outputs or inputs hold NaN; or an input is empty.
        TraceError: The network cannot be traced, for instance because it does not take the example.
        MaskError: The masks do not fit the network.
        SettingError: `round_to` is below 1.
        ShrinkError: The smaller network does not run or gives other outputs: please report it.

    Example:
        ```python
        import torch
        from torch import nn

        import nni_sparsevd as svd

        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
        with torch.no_grad():
            model[1].weight[::2] = 0  # a pruner's zeros; the shifts of the norm stay, so these channels are constants
            model[1].bias.uniform_(0, 1)
        images = torch.randn(1, 3, 16, 16)
        small, plan = svd.shrink(model, images)
        assert plan.removed == 4 and small[3].in_channels == 4
        torch.testing.assert_close(small(images), model(images))
        ```
    """
    require_traceable(model, example_inputs)
    require_parameters(model)
    masked = bake_(copy_model(model), masks)
    graph = channel_graph(masked, example_inputs, remember_norms=remember_norms)
    _require_own_numbers(model, graph)
    return shrink_masked(masked, graph, example_inputs, round_to)[:2]


def _require_own_numbers(model: nn.Module, graph: ChannelGraph) -> None:
    """Refuse a network of which a copy goes on to compute with the original's parameters.

    A copy shares every function with the original, and what the function holds: a `forward` that is a closure of the
    network, or a hook that is.  Masks would not reach such a parameter, and nothing could be cut from it.
    """
    names = {id(value): name for name, value in named_states(model)}
    for node in graph.trace.graph.nodes:
        name = names.get(id(node.meta.get("constant")))
        if name is not None:
            place = next((user.meta["module"] for user in node.users), "")
            raise ModelError(
                f"{place or 'the network itself'}: a copy of it computes with {name} of the network that was passed "
                "in, because its forward or a hook is a function that holds that network: make it a method, or let a "
                "hook use the module that it is called with"
            )


def shrink_masked(
    masked: nn.Module, graph: ChannelGraph, example_inputs: Inputs, round_to: int = 1
) -> tuple[nn.Module, Plan, CheckResult]:
    """What `shrink` does, for a network that is baked and masked already and whose channel graph is known.

    Args:
        masked: An ordinary network with zeros in its weights.  It is left as it is.
        graph: Its channel graph.
        example_inputs: What the network is called with; see `shrink`.
        round_to: What is left of each channel group is a multiple of this number of channels.

    Returns:
        The smaller network, the plan, and the comparison of the two networks.

    Raises:
        ModelError: The parameters hold NaN.
        SettingError: `round_to` is below 1.
        ShrinkError: The smaller network does not run or gives other outputs.
    """
    require_numbers(masked)
    plan = plan_removal(masked, graph, round_to)
    small = apply_plan(masked, plan)
    if find_half_type(masked) is not None:
        # In half precision rounding is as large as a small mistake would be.  So the plan is also carried out on a copy
        # in float32, where a mistake shows.  Not in float64: what the code computes in float32, as many norms do, would
        # be rounded more than that allows.  And not where the code gives its layers numbers of half precision, as
        # `self.layer(x.half())` does: such a network runs in no other type.
        widened = copy_model(masked).float()
        if runs_as(widened, torch.float32, as_arguments(example_inputs)):
            _compare(widened, apply_plan(widened, plan), example_inputs, plan)
    return small, plan, _compare(masked, small, example_inputs, plan)


def _compare(masked: nn.Module, small: nn.Module, example_inputs: Inputs, plan: Plan) -> CheckResult:
    """Compare two networks.

    Raises:
        ModelError: The masked network itself fails on the example, gives NaN there, or something else at each call.
        ShrinkError: The two do not compute the same.
    """
    try:
        result = check(masked, small, example_inputs, rounds=1)
    except ShrinkError as error:
        raise ShrinkError(
            f"the shrunk network: {error}; a size written in its forward? The plan was:\n{plan}"
        ) from error
    if result.ok:
        return result
    source = find_source_of_nan(masked, as_numbers_of(masked, as_arguments(example_inputs)))
    if source is not None:
        raise ModelError(
            f"{type(masked).__name__} gives NaN on the example, so nothing can be compared with it: {source}; pass an "
            "example on which its outputs are numbers"
        )
    if remembers_calls(masked, as_arguments(example_inputs)):
        raise ModelError(
            f"{type(masked).__name__} gives other outputs when it is called again with the same input, so nothing can "
            "be compared with it: it keeps what it has computed in an attribute of a module; keep it in a buffer "
            "(register_buffer), or clear it at the start of each call"
        )
    raise ShrinkError(f"the shrunk {type(masked).__name__} gives other outputs, {result}; the plan was:\n{plan}")
