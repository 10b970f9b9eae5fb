"""What an NNI config selected: the active pruning targets, in a fixed order, with what decides about each of them."""

from collections.abc import Iterator
from typing import TypeVar

from nni.compression.base.target_space import PruningTargetSpace, TargetType
from nni.compression.pruning.tools import is_active_target
from torch import Tensor, nn

T = TypeVar("T")
Spaces = dict[str, dict[str, PruningTargetSpace]]
"""{module name: {target name: its space}}, as NNI holds them."""
Members = dict[tuple[str, str], list[PruningTargetSpace]]
"""(module name, target name) -> the spaces of all targets of its dependency group, itself included."""
Values = dict[str, dict[str, Tensor]]
"""{module name: {target name: tensor}}: how NNI hands data, metrics and masks around."""


def in_model_order(by_module: dict[str, T], model: nn.Module) -> dict[str, T]:
    """Sort by module name as the model has them; NNI's own order follows a set, and so the process's hash seed."""
    order = {name: place for place, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    return dict(sorted(by_module.items(), key=lambda item: order[item[0]]))


def tie_again_(spaces: Spaces, holders: dict[Tensor, list[str]]) -> None:
    """Let wrappers of modules that shared a parameter share it again: NNI gives each of them a copy.

    Args:
        spaces: The targets.
        holders: Parameter -> the names that it has in the network, before NNI has wrapped the layers.
    """
    by_name = {f"{name}.{target}": space for name, target, space in _walk(spaces)}
    for names in holders.values():
        shared = [by_name[name] for name in names if name in by_name]
        for other in shared[1:]:
            other._wrapper.register_parameter(other._target_name, shared[0].target)


def settle_(spaces: Spaces, threshold: float) -> Members:
    """Give every prunable target a ratio or a threshold; returns the members of every target's dependency group.

    A target that has neither takes the ratio of its group, or else `threshold`.
    """
    prunable = {(name, target): space for name, target, space in _walk(spaces) if _is_prunable(space)}
    # Only after the prunable targets are listed: a bias that loses its `align` here gets no ratio of its own instead.
    for name, _, space in _walk(spaces):
        if space.align is not None and _follows_single_weights(space, spaces[name]):
            space._setting["align"] = None
    _set_missing_ratios_(list(prunable.values()), threshold)
    # Before thresholds take the group ids away: the members still share one metric, so a threshold cuts them alike.
    members = {key: _members_of_group(space, list(prunable.values())) for key, space in prunable.items()}
    for space in prunable.values():
        if space.sparse_threshold is not None:
            _prepare_for_threshold_(space)
    return members


def has_own_amount(space: PruningTargetSpace, spaces: Spaces) -> bool:
    """Whether the config_list says how much of a target is removed.

    It does so by a ratio or threshold of the target or of its global group; in a dependency group, other targets do.
    """
    if space.dependency_group_id is not None or _has_amount(space):
        return True
    if space.global_group_id is None:
        return False
    group = [other for _, _, other in _walk(spaces) if other.global_group_id == space.global_group_id]
    return any(_has_amount(other) for other in group)


def _has_amount(space: PruningTargetSpace) -> bool:
    return space.sparse_ratio is not None or space.sparse_threshold is not None


def _is_prunable(space: PruningTargetSpace) -> bool:
    return space.type is TargetType.PARAMETER and space.target is not None and space.align is None


def _follows_single_weights(space: PruningTargetSpace, targets: dict[str, PruningTargetSpace]) -> bool:
    """Whether NNI's default, and not the user, aligns a bias with a weight that loses single elements.

    Such a bias has to stay: a row without weights still adds its bias.
    """
    if space.align["module_name"] is not None:
        return False
    weight = targets.get(space.align["target_name"])
    if weight is None or not _loses_single_weights(weight):
        return False
    entries = space._wrapper.configs.get("pruning", [])
    return not any("align" in entry.get("target_settings", {}).get(space._target_name, {}) for entry in entries)


def _loses_single_weights(space: PruningTargetSpace) -> bool:
    granularity = space.granularity
    return granularity is None or (isinstance(granularity, list) and all(size == 1 for size in granularity))


def _set_missing_ratios_(prunable: list[PruningTargetSpace], threshold: float) -> None:
    ratios = {}
    for space in prunable:
        if space.sparse_ratio is not None:
            ratios.update(dict.fromkeys(_group_ids(space), space.sparse_ratio))
    for space in prunable:
        if is_active_target(space):
            continue
        shared = [ratios[group] for group in _group_ids(space) if group in ratios]
        if shared:
            space.sparse_ratio = shared[0]
        else:
            space.sparse_threshold = threshold


def _group_ids(space: PruningTargetSpace) -> list[tuple[str, object]]:
    """The groups that a target belongs to, each with its kind: a dependency group and a global one may share an id."""
    ids = [("dependency", space.dependency_group_id), ("global", space.global_group_id)]
    return [(kind, group) for kind, group in ids if group is not None]


def _members_of_group(space: PruningTargetSpace, prunable: list[PruningTargetSpace]) -> list[PruningTargetSpace]:
    group = space.dependency_group_id
    if group is None:
        return [space]
    return [other for other in prunable if other.dependency_group_id == group]


def _prepare_for_threshold_(space: PruningTargetSpace) -> None:
    """Let a threshold cut this target by itself, and leave at least its best block.

    NNI ranks groups by a ratio only, so the group ids go.  The members still agree: they share one metric.
    """
    space._setting |= {"dependency_group_id": None, "global_group_id": None}
    if space.max_sparse_ratio is None:
        space.max_sparse_ratio = 1 - 0.5 / count_blocks(space)  # half a block less than all of them


def count_blocks(space: PruningTargetSpace) -> int:
    """How many blocks of its granularity a target has."""
    scaler = space._scaler
    return int(space.target.numel() if scaler is None else scaler.shrink(space.target.detach()).numel())


def active(spaces: Spaces) -> Iterator[tuple[str, str, PruningTargetSpace]]:
    """(module name, target name, space) of each target that a ratio or a threshold cuts."""
    return (entry for entry in _walk(spaces) if is_active_target(entry[2]))


def _walk(spaces: Spaces) -> Iterator[tuple[str, str, PruningTargetSpace]]:
    """(module name, target name, space) of each target."""
    for name, targets in spaces.items():
        for target, space in targets.items():
            yield name, target, space
