"""The law of shrinking, as an assertion: a shrunk network computes what the network before it computed."""

import copy

import torch
from torch import Tensor, nn

from ..convert import bake_
from ..graph import CallArguments, Inputs, as_arguments, copy_module, name_leaves, named_states
from ..masks import Masks
from ..shrinking import Plan, check, make_plan, shrink
from .assertions import check_that

TOLERANCE_64 = 1e-10
"""Largest relative difference in float64."""
TOLERANCE_32 = 1e-5
"""Largest relative difference in float32."""
EXTRA_PIXELS = 32
"""Pixels by which images are also tried larger."""


def assert_shrinks_exactly(
    model: nn.Module, example_inputs: Inputs, masks: Masks | None = None
) -> tuple[nn.Module, Plan]:
    """Assert everything that holds whenever a network is shrunk.

    1. The small network computes what the network computed: in float64 to rounding, on random inputs in batches of one
       and of three, and on larger images where the network takes them. `check` says the same, in float32 too.
    2. The network that was shrunk is untouched, and the small one shares no memory with it.
    3. The modules are the same, of the same classes, and none is empty.
    4. What is left is what the plan says.
    5. Planning again finds nothing more to remove.

    Args:
        model: Any network, with zeros in its weights or with `masks`; it stays as it is. The comparison runs on a copy
            in float64.
        example_inputs: Inputs of the network: see `shrink`; each tensor has its batch along dimension 0.
        masks: What to remove beside the zeros in the weights.

    Returns:
        The small network, in float64, and the plan.

    Raises:
        AssertionError: A part of the law does not hold.
    """
    model = copy_module(model).double()
    example = as_arguments(example_inputs).map_tensors(
        lambda value: value.double() if value.is_floating_point() else value
    )
    state_before = copy.deepcopy(model.state_dict())
    modes_before = [module.training for module in model.modules()]
    small, plan = shrink(model, example, masks)
    _assert_untouched(model, small, state_before, modes_before)
    masked = copy_module(model)
    if masks is not None:
        bake_(masked, masks)
    assert_same_outputs(masked, small, example)
    _assert_same_modules(model, small)
    _assert_plan_is_true(model, small, plan)
    _assert_fixed_point(model, small, example)
    return small, plan


def assert_same_outputs(model: nn.Module, small: nn.Module, example_inputs: Inputs) -> None:
    """Assert that two networks compute the same, by running both and by `check`.

    Args:
        model: The network that is right, in float64.
        small: The network that should compute the same, in float64.
        example_inputs: Inputs of both networks: see `shrink`.

    Raises:
        AssertionError: The outputs differ by more than rounding.
    """
    difference = relative_difference(model, small, example_inputs)
    check_that(difference < TOLERANCE_64, f"outputs differ by {difference:.2g} of the largest output")
    result = check(model, small, example_inputs, rounds=1)
    check_that(result.ok, f"check: {result}")
    check_that(result.stored_in_64, "check: the networks are not stored in float64")
    check_that(result.max_rel_64 < TOLERANCE_64, f"check: {result}")
    check_that(result.max_rel_32 < TOLERANCE_32, f"check: {result}")


def assert_sensitive(model: nn.Module, example_inputs: Inputs) -> None:
    """Assert that a comparison of outputs means something: a first layer that is wrong by a hundredth shows.

    Args:
        model: A network in float64.
        example_inputs: Inputs of the network: see `shrink`.

    Raises:
        AssertionError: The outputs do not depend on the first layer.
    """
    wrong = copy_module(model)
    with torch.no_grad():
        next(parameter for parameter in wrong.parameters() if parameter.dim() > 1).mul_(1.01)
    difference = relative_difference(model, wrong, example_inputs)
    check_that(difference > 1e-9, "the outputs hardly depend on the first layer: the comparison would find nothing")


def relative_difference(left: nn.Module, right: nn.Module, example_inputs: Inputs) -> float:
    """Largest difference between the outputs of two networks in evaluation mode, relative to the largest output.

    Args:
        left: The network that is right; it stays as it is.
        right: The other network; it stays as it is.
        example_inputs: Inputs of both networks: see `shrink`. Random inputs have these shapes in
            batches of one and of three, and larger images where `left` takes them.

    Returns:
        The largest relative difference over all batches.

    Raises:
        AssertionError: The outputs of `left` are not finite, or those of `right` have another shape.
    """
    left, right = copy_module(left).eval(), copy_module(right).eval()
    largest = 0.0
    with torch.no_grad():
        for batch in _draw_batches(left, as_arguments(example_inputs)):
            for expected, actual in zip(_run(left, batch), _run(right, batch), strict=True):
                shapes = f"shapes {tuple(expected.shape)} and {tuple(actual.shape)}"
                check_that(expected.shape == actual.shape, f"outputs of {shapes}")
                check_that(bool(expected.isfinite().all()), "outputs that are not finite")
                largest = max(largest, float((expected - actual).abs().max() / expected.abs().max()))
    return largest


def _draw_batches(model: nn.Module, example: CallArguments) -> list[CallArguments]:
    """Random inputs in batches of three and of one, and larger images where the network takes them."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for batch in (3, 1):
        batches.append(example.with_tensors([_draw(value, batch, 0, generator) for value in example.tensors]))
    if any(value.dim() == 4 for value in example.tensors):
        larger = example.map_tensors(lambda value: _draw(value, 2, EXTRA_PIXELS, generator))
        if _takes(model, larger):
            batches.append(larger)
    return batches


def _takes(model: nn.Module, batch: CallArguments) -> bool:
    """Whether a network runs on a batch of two, and gives two outputs for it."""
    try:
        outputs = _run(model, batch)
    except (RuntimeError, ValueError, AssertionError):  # a network for images of one size
        return False
    # A network that reshapes to a fixed size may have made several images of one.
    return all(len(output) == 2 for output in outputs)


def _draw(example: Tensor, batch: int, extra_pixels: int, generator: torch.Generator) -> Tensor:
    shape = [batch, *example.shape[1:]]
    if example.dim() == 4:
        shape[2:] = [size + extra_pixels for size in shape[2:]]
    if example.is_floating_point():
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(example)
    values = example.flatten()
    return values[torch.randint(len(values), shape, generator=generator)]


def _run(model: nn.Module, batch: CallArguments) -> list[Tensor]:
    return [leaf for _, leaf in name_leaves(batch.call(model)) if isinstance(leaf, Tensor)]


def _assert_untouched(
    model: nn.Module, small: nn.Module, state_before: dict[str, Tensor], modes_before: list[bool]
) -> None:
    for name, value in model.state_dict().items():
        check_that(torch.equal(value, state_before[name]), f"shrink changed {name} of the network")
    check_that([module.training for module in model.modules()] == modes_before, "shrink changed a training mode")
    addresses = {parameter.data_ptr() for parameter in model.parameters()}
    for name, parameter in small.named_parameters():
        check_that(parameter.data_ptr() not in addresses, f"{name} shares its memory with the network")


def _assert_same_modules(model: nn.Module, small: nn.Module) -> None:
    before = [(name, type(module)) for name, module in model.named_modules()]
    after = [(name, type(module)) for name, module in small.named_modules()]
    check_that(before == after, f"modules before: {before}; after: {after}")
    for name, parameter in small.named_parameters():
        check_that(parameter.numel() > 0, f"{name} is empty")


def _assert_plan_is_true(model: nn.Module, small: nn.Module, plan: Plan) -> None:
    """What the plan cuts is smaller by what it cuts; everything else keeps its shape."""
    before, after = dict(named_states(model)), dict(named_states(small))
    for (name, dim), indices in plan.cuts.items():
        expected, actual = before[name].shape[dim] - len(indices), after[name].shape[dim]
        check_that(actual == expected > 0, f"{name} has size {actual} along {dim}, by the plan {expected}")
    # Tensors that are tied stand in the plan under one of their names.
    cut_addresses = {before[name].data_ptr() for name, _ in plan.cuts}
    for name, value in before.items():
        if value.data_ptr() not in cut_addresses:
            shapes = f"{tuple(value.shape)} -> {tuple(after[name].shape)}"
            check_that(after[name].shape == value.shape, f"{name} is not in the plan, but its shape changed: {shapes}")


def _assert_fixed_point(model: nn.Module, small: nn.Module, example: CallArguments) -> None:
    again = make_plan(small, example)
    nothing_left = again.removed == 0 and not again.cuts
    check_that(nothing_left or _has_freed_convolution(model, small), f"planning again finds more to remove:\n{again}")


def _has_freed_convolution(model: nn.Module, small: nn.Module) -> bool:
    """Whether a grouped convolution became plain or depthwise: its channels are then less bound than before.

    This is the one exception to the fixed point. In a grouped convolution only equal numbers of channels can leave all
    groups; with one group left, or one channel in each group, that no longer holds.
    """
    for name, before in model.named_modules():
        if not isinstance(before, nn.Conv2d):
            continue
        after = small.get_submodule(name)
        assert isinstance(after, nn.Conv2d)
        became_plain = after.groups == 1 < before.groups
        became_depthwise = before.groups < before.in_channels and after.groups == after.in_channels > 1
        if became_plain or became_depthwise:
            return True
    return False
