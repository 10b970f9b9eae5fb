"""What an NNI config selected: the active pruning targets, in a fixed order, with what each of them is decided by."""

from collections.abc import Iterator
from typing import TypeVar

from nni.compression.base.target_space import PruningTargetSpace, TargetType
from nni.compression.pruning.tools import is_active_target
from torch import nn

T = TypeVar("T")
Spaces = dict[str, dict[str, PruningTargetSpace]]
"""{module name: {target name: its space}}, as NNI holds them."""


def in_model_order(by_module: dict[str, T], model: nn.Module) -> dict[str, T]:
    """Sort by module name as the model has them; NNI's own order follows a set, and so the process's hash seed."""
    order = {name: place for place, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    return dict(sorted(by_module.items(), key=lambda item: order[item[0]]))


def settle_(spaces: Spaces, threshold: float) -> dict[tuple[str, str], list[PruningTargetSpace]]:
    """Give every prunable target a ratio or a threshold; returns all members of its dependency group.

    A target without either takes the ratio of its group, else `threshold`.  Where a threshold cuts, at least the best
    block stays, and the group ids go: NNI ranks groups by a ratio only, and the common metric makes their masks agree.
    A bias whose weight loses single elements stays: a row without weights still adds it.
    """
    everything = {(name, target): space for name, targets in spaces.items() for target, space in targets.items()}
    prunable = {key: space for key, space in everything.items() if _prunable(space)}
    for (name, _), space in everything.items():
        if space.align is not None and _of_single_weights(space, spaces[name]):
            space._setting["align"] = None
    ratios = {group: s.sparse_ratio for s in prunable.values() if s.sparse_ratio is not None for group in _groups(s)}
    for space in prunable.values():
        if not is_active_target(space):
            shared = [ratios[group] for group in _groups(space) if group in ratios]
            setattr(space, *(("sparse_ratio", shared[0]) if shared else ("sparse_threshold", threshold)))
    members = {key: [other for other in prunable.values() if other is space or _together(space, other)]
               for key, space in prunable.items()}  # fmt: skip
    for space in prunable.values():
        if space.sparse_threshold is not None:
            space._setting |= {"dependency_group_id": None, "global_group_id": None}
            if space.max_sparse_ratio is None:
                space.max_sparse_ratio = 1 - 0.5 / blocks(space)  # half a block less than all of them
    return members


def _prunable(space: PruningTargetSpace) -> bool:
    return space.type is TargetType.PARAMETER and space.target is not None and space.align is None


def _of_single_weights(space: PruningTargetSpace, targets: dict[str, PruningTargetSpace]) -> bool:
    """Whether NNI's default, and not the user, aligns `space` with an element-wise target of its module."""
    source = targets.get(space.align["target_name"]) if space.align["module_name"] is None else None
    entries = space._wrapper.configs.get("pruning", [])
    asked = any("align" in entry.get("target_settings", {}).get(space._target_name, {}) for entry in entries)
    return source is not None and source._scaler is None and not asked


def _groups(space: PruningTargetSpace) -> list[tuple[str, object]]:
    named = [("dependency", space.dependency_group_id), ("global", space.global_group_id)]
    return [(kind, group) for kind, group in named if group is not None]


def _together(one: PruningTargetSpace, other: PruningTargetSpace) -> bool:
    group = one.dependency_group_id
    return group is not None and group == other.dependency_group_id


def blocks(space: PruningTargetSpace) -> int:
    """How many blocks of its granularity a target has."""
    scaler = space._scaler
    return int(space.target.numel() if scaler is None else scaler.shrink(space.target.detach()).numel())


def active(spaces: Spaces) -> Iterator[tuple[str, str, PruningTargetSpace]]:
    """(module, target, space) of each target that a ratio or a threshold cuts."""
    for name, targets in spaces.items():
        for target, space in targets.items():
            if is_active_target(space):
                yield name, target, space
