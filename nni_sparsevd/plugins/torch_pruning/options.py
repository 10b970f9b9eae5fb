"""The options that `SparseVDPruner` hands to Torch-Pruning's own pruner, and those that it fills in."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any, TypedDict, cast

from torch import Tensor, nn

from ...errors import SettingError
from ...graph import Inputs, as_arguments, name_leaves
from ...regularize import Budget
from .attention import Attention
from .importance import SparseVDImportance

KEYED_BY_LAYERS = (
    "pruning_ratio_dict",
    "head_pruning_ratio_dict",
    "num_heads",
    "in_channel_groups",
    "out_channel_groups",
)
"""The options that are dictionaries of layers, or of tuples of layers."""


class Options(TypedDict, total=False):
    """The further arguments of Torch-Pruning's `BasePruner`, which documents them."""

    global_pruning: bool
    pruning_ratio_dict: dict[Any, float]
    max_pruning_ratio: float
    iterative_steps: int
    iterative_pruning_ratio_scheduler: Callable[[float, int], list[float]]
    ignored_layers: list[Any]
    round_to: int | None
    isomorphic: bool
    in_channel_groups: dict[nn.Module, int]
    out_channel_groups: dict[nn.Module, int]
    num_heads: dict[nn.Module, int]
    prune_num_heads: bool
    prune_head_dims: bool
    head_pruning_ratio: float
    head_pruning_ratio_dict: dict[nn.Module, float]
    customized_pruners: dict[Any, Any]
    unwrapped_parameters: Any
    root_module_types: list[type[nn.Module]]
    forward_fn: Callable[..., Any]
    output_transform: Callable[..., Any]


def check_options(options: Mapping[str, Any]) -> Options:
    """Refuse options that Torch-Pruning does not have, and leave out those that are None: Torch-Pruning's "not given".

    Raises:
        SettingError: An option is unknown; the message names it and all that are known.
    """
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        known = ", ".join(Options.__annotations__)
        raise SettingError(f"SparseVDPruner: {', '.join(sorted(unknown))} is no option; known are {known}")
    given = {name: value for name, value in options.items() if value is not None}
    if isinstance(given.get("ignored_layers"), Iterator):
        given["ignored_layers"] = list(given["ignored_layers"])  # it is walked through several times
    return cast(Options, given)


def check_layers(options: Mapping[str, Any], model: nn.Module) -> None:
    """Refuse layers that are not in the network: Torch-Pruning passes over them, and prunes those that were meant.

    Raises:
        SettingError: One is not in the network, or is named where Torch-Pruning wants the layer itself.
    """
    ignored = options.get("ignored_layers", ())
    if not isinstance(ignored, Iterable) or isinstance(ignored, str):
        raise SettingError(f"SparseVDPruner: ignored_layers has to be a list of layers, found {ignored!r}")
    layers = [("ignored_layers", entry) for entry in ignored if not isinstance(entry, type)]
    for name in KEYED_BY_LAYERS:
        entries = options.get(name, {})
        if not isinstance(entries, Mapping):
            raise SettingError(f"SparseVDPruner: {name} has to be a dictionary of layers, found {entries!r}")
        for key in entries:
            layers += [(name, layer) for layer in (key if isinstance(key, tuple) else (key,))]
    known = {id(part) for part in (*model.modules(), *model.parameters())}
    for name, layer in layers:
        if id(layer) not in known:
            raise SettingError(
                f"SparseVDPruner: {name}: {layer!r} is no layer of this {type(model).__name__}; pass the layers "
                "themselves, of the very network that is pruned"
            )


def check_numbers(pruning_ratio: object, training_steps: object, options: Mapping[str, Any]) -> None:
    """Refuse numbers that Torch-Pruning fails on, or takes and does nothing with; `check_layers` comes first.

    Raises:
        SettingError: One is of another type or out of range; the message names it.
    """
    ratios = [("pruning_ratio", pruning_ratio), ("head_pruning_ratio", options.get("head_pruning_ratio"))]
    for name in ("pruning_ratio_dict", "head_pruning_ratio_dict"):
        ratios += [(f"a ratio of {name}", ratio) for ratio in options.get(name, {}).values()]
    for name, ratio in ratios:
        if ratio is not None and not (isinstance(ratio, Real) and 0 <= float(ratio) < 1):
            raise SettingError(f"SparseVDPruner: {name} = {ratio!r} has to be a part of the channels, 0 to below 1")
    largest = options.get("max_pruning_ratio", 1.0)
    if not (isinstance(largest, Real) and 0 <= float(largest) <= 1):
        raise SettingError(f"SparseVDPruner: max_pruning_ratio = {largest!r} has to be a part of the channels, 0 to 1")
    counts = [
        ("training_steps", training_steps, 1),
        ("iterative_steps", options.get("iterative_steps"), 1),
        ("round_to", options.get("round_to"), 0),  # 0 rounds nothing, in Torch-Pruning
    ]
    for name, count, least in counts:
        if count is not None and not (isinstance(count, Integral) and int(count) >= least):
            raise SettingError(f"SparseVDPruner: {name} = {count!r} has to be a whole number of at least {least}")


def check_decision(has_ratio: bool, options: Options, budget: Budget | None, importance: object) -> None:
    """Refuse arguments that contradict each other about who decides: a ratio, the posterior or a budget.

    Raises:
        SettingError: `budget` is something else or comes with a ratio, a ratio of heads comes without one of channels,
            or the posterior is to decide by an importance that is no share of the signal.
    """
    if budget is not None and not isinstance(budget, Budget):
        raise SettingError(f"SparseVDPruner: budget has to be a Budget(...), found {budget!r}")
    if has_ratio:
        if budget is not None:
            raise SettingError("SparseVDPruner: a budget goes without a pruning_ratio")
        return
    if options.get("head_pruning_ratio") or options.get("head_pruning_ratio_dict"):
        raise SettingError(
            "SparseVDPruner: a head_pruning_ratio goes with a pruning_ratio; without one the posterior decides about "
            "heads, too"
        )
    if not isinstance(importance, SparseVDImportance) or not importance.gives_shares:
        raise SettingError(
            "SparseVDPruner: without a pruning_ratio the posterior decides by the signal's share of the power, so the "
            "importance must be a SparseVDImportance without normalizer, whose group_reduction is neither sum nor prod"
        )


def fill_options(options: Options, attentions: list[Attention], model: nn.Module, example_inputs: Inputs) -> Options:
    """The user's options, with the heads that the network has, and in the forms that Torch-Pruning really takes.

    1. Torch-Pruning's defaults of these dictionaries are shared between all pruners of a process, which write into
       them. Here they belong to one pruner alone.
    2. Torch-Pruning documents types among `ignored_layers` and passes over them; here they become the layers of these
       types. It documents a dict of `unwrapped_parameters` and fails on it; here it becomes the list that it reads.
    """
    filled: Options = {
        "num_heads": {attention.module.qkv: attention.heads for attention in attentions},
        "in_channel_groups": {},
        "out_channel_groups": {},
    }
    if not isinstance(example_inputs, Tensor):
        # Torch-Pruning knows tensors, lists and dicts; the network is called with whatever else there is, as here.
        filled["forward_fn"] = _call_network
        filled["output_transform"] = _list_tensors
    filled.update(options)
    if "ignored_layers" in filled:
        filled["ignored_layers"] = list(_find_layers(filled["ignored_layers"], model))
    if isinstance(filled.get("unwrapped_parameters"), dict):
        filled["unwrapped_parameters"] = list(filled["unwrapped_parameters"].items())
    return filled


def _find_layers(ignored: Iterable[Any], model: nn.Module) -> Iterator[Any]:
    """What is ignored, with the modules of a type in the place of the type."""
    for entry in ignored:
        if isinstance(entry, type):
            yield from (module for module in model.modules() if isinstance(module, entry))
        else:
            yield entry


def graph_options_for(twin: nn.Module, model: nn.Module, options: Options) -> dict[str, Any]:
    """The options of Torch-Pruning's dependency graph, with the parameters of a copy in the place of the model's."""
    twin_of = dict(zip(model.parameters(), twin.parameters(), strict=True))
    unwrapped = options.get("unwrapped_parameters")
    ignored = [entry for entry in options.get("ignored_layers", ()) if isinstance(entry, nn.Parameter)]
    return {
        "forward_fn": options.get("forward_fn"),
        "output_transform": options.get("output_transform"),
        "unwrapped_parameters": unwrapped and [(twin_of[parameter], dim) for parameter, dim in unwrapped],
        "customized_pruners": options.get("customized_pruners"),
        "ignored_params": [twin_of[parameter] for parameter in ignored],
    }


def _call_network(model: nn.Module, example_inputs: Inputs) -> Any:
    return as_arguments(example_inputs).call(model)


def _list_tensors(output: Any) -> list[Tensor]:
    """The tensors of an output from which there is a way back to the weights."""
    return [leaf for _, leaf in name_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]


def find_ignored(options: Options) -> set[nn.Module]:
    """All modules that are not to be pruned: those of `ignored_layers`, and the modules inside them."""
    ignored: set[nn.Module] = set()
    for layer in options.get("ignored_layers", ()):
        if isinstance(layer, nn.Module):  # and no parameter, which Torch-Pruning accepts here, too
            ignored.update(layer.modules())
    return ignored
