"""Whether a plan was made for a network: asked before anything is changed."""

from torch import Tensor, nn

from ..errors import ShrinkError
from ..graph import list_modules, named_states
from .plan import Plan
from .plan_parts import SizeChange


def read_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the state dict, under each of its names."""
    return {
        name: tuple(value.shape)
        for name, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor)
    }


def refuse_misfit(model: nn.Module, plan: Plan) -> None:
    """Compare the network with everything that the plan says of it; nothing is changed.

    Raises:
        ShrinkError: A tensor, attribute or module is missing or is another one than the plan was made for.
    """
    for find_problem in (_compare_shapes, _check_indices, _check_biases, _check_attributes, _check_norms):
        problem = find_problem(model, plan)
        if problem is not None:
            raise ShrinkError(f"the plan was not made for this {type(model).__name__}: {problem}")


def _compare_shapes(model: nn.Module, plan: Plan) -> str | None:
    shapes = read_shapes(model)
    for name, shape in plan.shapes.items():
        if name not in shapes:
            return f"{name} is missing"
        if shapes[name] != shape:
            return f"{name} has the shape {shapes[name]}, the plan was made for {shape}"
    # A tensor that the plan does not know may read channels that are about to be removed.
    unknown = sorted(set(shapes) - set(plan.shapes))
    return f"{unknown[0]} is unknown to the plan" if unknown else None


def _check_indices(model: nn.Module, plan: Plan) -> str | None:
    """Every index that is cut, merged or multiplied has to be there."""
    places: list[tuple[str, int, tuple[int, ...]]] = []
    for (name, dim), indices in plan.cuts.items():
        places.append((name, dim, indices))
    for (name, dim), merges in plan.merges.items():
        for merge in merges:
            places.append((name, dim, (merge.into, merge.source)))
    for scaling in plan.scales:
        places.append((scaling.weight, 0, scaling.rows))
        if scaling.bias is not None:
            places.append((scaling.bias, 0, scaling.rows))
    tensors = dict(named_states(model))
    for name, dim, indices in places:
        if name not in tensors:
            return f"{name} is missing"
        shape, largest = tuple(tensors[name].shape), max(indices, default=0)
        if dim >= len(shape) or largest >= shape[dim]:
            return f"{name} has the shape {shape}, the plan changes index {largest} of dimension {dim}"
    return None


def _check_biases(model: nn.Module, plan: Plan) -> str | None:
    """A bias that absorbs constants has an entry for each output; it is born where its layer has none."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(list_modules(model))
    for name, added in plan.folds.items():
        owner = name.rpartition(".")[0]
        template = parameters.get(name)
        if template is None and _lacks_bias(modules.get(owner)) and name.endswith("bias"):
            template = parameters.get(f"{owner}.weight".removeprefix("."))
        if template is None:
            return f"{name} is missing, and there is no layer without a bias that could get it"
        if template.shape[0] != len(added):
            return f"{name} has {template.shape[0]} entries, the plan adds {len(added)}"
    return None


def _lacks_bias(layer: nn.Module | None) -> bool:
    """Whether a layer was made with bias=False: the key is there, and has no value."""
    return layer is not None and "bias" in layer._parameters and layer._parameters["bias"] is None


def _check_attributes(model: nn.Module, plan: Plan) -> str | None:
    """A file can only change numbers of channels that are there: it cannot add behavior."""
    modules = dict(list_modules(model))
    for change in plan.sizes:
        number = _read_number(modules.get(change.module), change)
        if number != change.before:
            name = f"{change.module}.{change.attribute}".removeprefix(".")
            return f"{name} is {number}, the plan was made for {change.before}"
    for scaling in plan.scales:
        if scaling.module not in modules:
            return f"{scaling.module} is missing"
    return None


def _read_number(module: nn.Module | None, change: SizeChange) -> int | None:
    """The whole number that a plan wants to change; None where there is none."""
    value = None if module is None else vars(module).get(change.attribute)
    if change.position is not None:
        if not isinstance(value, list | tuple) or change.position >= len(value):
            return None
        value = value[change.position]
    return value if type(value) is int else None


def _check_norms(model: nn.Module, plan: Plan) -> str | None:
    modules = dict(list_modules(model))
    for name, memory in plan.norms.items():
        norm = modules.get(name)
        if memory.indices is not None:
            if norm is None:
                return f"there is no module {name}"
            if len(memory.indices) != memory.removed.numel() or max(memory.indices) >= memory.channels:
                return f"{name} cannot remember {memory.removed.numel()} of {memory.channels} channels"
            continue
        if not isinstance(norm, nn.LayerNorm):
            return f"{name} is no layer norm"
        if memory.removed.numel() >= norm.normalized_shape[-1]:
            return f"{name} has {norm.normalized_shape[-1]} channels, the plan removes {memory.removed.numel()}"
    return None
