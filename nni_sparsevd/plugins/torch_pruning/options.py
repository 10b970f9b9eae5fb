"""The options that `SparseVDPruner` hands to Torch-Pruning's own pruner, and those that it fills in."""

from collections.abc import Callable, Mapping
from typing import Any, TypedDict

from torch import Tensor, nn

from ...errors import SettingError
from ...graph import Inputs, as_arguments, name_leaves
from .attention import Attention


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


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that Torch-Pruning does not have.

    Raises:
        SettingError: An option is unknown; the message names it and all that are known.
    """
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        known = ", ".join(Options.__annotations__)
        raise SettingError(f"SparseVDPruner: {', '.join(sorted(unknown))} is no option; known are {known}")


def fill_options(options: Options, attentions: list[Attention], example_inputs: Inputs) -> Options:
    """The user's options, with the heads that the network has, and with dictionaries that belong to one pruner alone.

    Torch-Pruning's defaults of these dictionaries are shared between all pruners of a process, which write into them.
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
    return filled


def _call_network(model: nn.Module, example_inputs: Inputs) -> Any:
    return as_arguments(example_inputs).call(model)


def _list_tensors(output: Any) -> list[Tensor]:
    """The tensors of an output from which there is a way back to the weights."""
    return [leaf for _, leaf in name_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]


def find_ignored(options: Options) -> set[nn.Module]:
    """All modules that are not to be pruned: those of `ignored_layers`, and the modules inside them."""
    ignored: set[nn.Module] = set()
    for layer in options.get("ignored_layers") or ():
        if isinstance(layer, nn.Module):  # and no parameter, which Torch-Pruning accepts here, too
            ignored.update(layer.modules())
    return ignored
