"""NNI's config_list, checked before anything happens: every message names the entry, the key, and what to write.

NNI's own checks name neither entry nor key, and let through what selects nothing or fails deep inside a pruner.
"""

import difflib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nni.compression.base.config import select_modules_by_config, trans_legacy_config_list
from nni.compression.base.setting import PruningSetting
from nni.compression.utils.scaling import Scaling
from torch import Tensor, nn

from ...errors import SettingError, SparseVDWarning
from .entries import Entry, Target, parse_entry, places_and_targets

ACTIVATIONS = ("_input_", "_output_")
"""How NNI begins the names of targets that are no parameters."""
Ratios = dict[tuple[str, object], tuple[str, float]]
"""(kind of group, group id) -> (place in the config_list that gave a ratio first, the ratio)."""


@dataclass(frozen=True)
class Selected:
    """A target that an entry selects, with all that NNI will know of it."""

    where: str
    """The entry, as messages name it: config_list[0]."""
    module: str
    target: str
    setting: dict[str, Any]
    value: Any
    """The parameter; None where the module has none of this name, such as a bias."""

    @property
    def name(self) -> str:
        """As a parameter's."""
        return f"{self.module}.{self.target}"


def to_current_keys(config_list: Any) -> Any:
    """Translate a config_list in the keys of NNI 2 into those of NNI 3.

    NNI's own translation leaves two things undone. An entry that only excludes stays in the list and selects nothing
    any more; here it goes. What a `total_sparsity` makes a group of gets a key that NNI 3 does not know; here it gets
    `global_group_id`.

    Args:
        config_list: What the user wrote; anything that is no list of dictionaries comes back as it is.
    """
    if not isinstance(config_list, list | tuple) or not all(isinstance(entry, dict) for entry in config_list):
        return config_list
    translated = trans_legacy_config_list(config_list)
    if translated is config_list:  # it has no key of NNI 2
        return config_list
    entries = [entry for raw, entry in zip(config_list, translated, strict=True) if "exclude" not in raw]
    for entry in entries:
        for setting in entry.get("target_settings", {}).values():
            if "group_id" in setting:
                setting["global_group_id"] = setting.pop("group_id")
    return entries


def check_config(model: nn.Module, config_list: Any) -> None:
    """Check that a config_list selects something and means what it says.

    Args:
        model: The network that the entries select from.
        config_list: Entries in the keys of NNI 3.

    Raises:
        SettingError: The first thing that cannot mean what it says.
    """
    if not isinstance(config_list, list | tuple):
        raise SettingError(f"config_list: a list of dictionaries, found {type(config_list).__name__}")
    if not config_list:
        raise SettingError("config_list: no entry selects anything")
    ratios: Ratios = {}
    selected: list[Selected] = []
    for index, raw_entry in enumerate(config_list):
        selected += _check_entry(f"config_list[{index}]", raw_entry, model, ratios)
    names = {target.name for target in selected}
    for target in selected:
        _check_granularity(target)
        _check_align(target, model, names)
    _check_dependencies(selected)


def _check_entry(where: str, raw_entry: Any, model: nn.Module, ratios: Ratios) -> list[Selected]:
    """Check one entry by itself, and its ratios with those of earlier entries; returns what it selects."""
    entry = parse_entry(where, raw_entry)
    _check_selection(where, entry, model)
    modules, public_keys, _ = select_modules_by_config(model, raw_entry)
    if not modules:
        keys = [f"{key}={raw_entry[key]}" for key in raw_entry if key.startswith(("op_", "exclude_"))]
        raise SettingError(f"{where}: selects no module of {type(model).__name__}: {', '.join(keys)}")
    for place, target in places_and_targets(where, entry):
        for kind in ("dependency_group_id", "global_group_id"):
            _check_ratio(place, target, kind, ratios)
    selected: list[Selected] = []
    for name in sorted(modules):
        selected += _select_targets(where, entry, name, modules[name], dict(public_keys))
    return selected


def _check_ratio(where: str, target: Target, kind: str, ratios: Ratios) -> None:
    """All members of a group must ask for the same ratio."""
    group = getattr(target, kind)
    if group is None or target.sparse_ratio is None:
        return
    first, ratio = ratios.setdefault((kind, group), (where, target.sparse_ratio))
    if ratio != target.sparse_ratio:
        raise SettingError(
            f"{where}.sparse_ratio: {target.sparse_ratio}, but {first} asks for {ratio} in the same {kind} {group!r}"
        )


def _check_selection(where: str, entry: Entry, model: nn.Module) -> None:
    """The keys that select must name modules that exist, and hold regular expressions that compile."""
    if not (entry.op_types or entry.op_names or entry.op_names_re):
        raise SettingError(f"{where}: needs at least one of op_types, op_names, op_names_re")
    module_names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for key in ("op_names", "exclude_op_names"):
        for name in getattr(entry, key) or ():
            if name not in module_names:
                similar = difflib.get_close_matches(name, module_names, 3)
                hint = f"; did you mean {', '.join(similar)}?" if similar else ""
                raise SettingError(f"{where}.{key}: {type(model).__name__} has no module {name!r}{hint}")
    for key in ("op_names_re", "exclude_op_names_re"):
        for pattern in getattr(entry, key) or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise SettingError(f"{where}.{key}: {pattern!r} is no regular expression: {error}") from None
            if not any(re.match(pattern, name) for name in module_names):
                warnings.warn(
                    f"{where}.{key}: {pattern!r} matches no module of {type(model).__name__}",
                    SparseVDWarning,
                    stacklevel=5,
                )


def _select_targets(
    where: str, entry: Entry, name: str, module: nn.Module, public_keys: dict[str, Any]
) -> Iterator[Selected]:
    """The parameters of a module that an entry selects."""
    _check_target_names(where, entry, name, module)
    try:
        settings = PruningSetting.get(module, public_keys)
    except KeyError as error:
        kind = type(module).__name__
        raise SettingError(f"{where}.target_names: NNI does not know how to prune {error} of {kind} {name!r}") from None
    for target, setting in settings.items():
        if not target.startswith(ACTIVATIONS):
            yield Selected(where, name, target, setting, getattr(module, target))
        elif setting.get("sparse_ratio") is not None or setting.get("sparse_threshold") is not None:
            raise SettingError(f"{where}: {target} of {name!r}: only parameters carry a posterior, not activations")


def _check_target_names(where: str, entry: Entry, name: str, module: nn.Module) -> None:
    kind = type(module).__name__
    if kind not in PruningSetting.registry:
        raise SettingError(
            f"{where}: selects {name!r}, but NNI does not know what to prune in {kind}; it knows "
            f"{', '.join(PruningSetting.registry)}. Others: nni.compression.base.setting.PruningSetting.register"
        )
    known = {**PruningSetting.registry[kind], **(entry.target_settings or {})}
    for target in entry.target_names or ():
        if target not in known and not target.startswith(ACTIVATIONS):
            raise SettingError(
                f"{where}.target_names: {kind} {name!r} has no target {target!r}; it has {', '.join(known)}"
            )
    for target in known:
        if not target.startswith(ACTIVATIONS) and not hasattr(module, target):
            raise SettingError(f"{where}.target_settings: {kind} {name!r} has no attribute {target!r}")


def _check_granularity(selected: Selected) -> None:
    """The blocks must tile the parameter."""
    if not isinstance(selected.value, Tensor):
        return
    granularity = selected.setting.get("granularity")
    where, shape = f"{selected.where}.granularity", tuple(selected.value.shape)
    if granularity == "per_channel":
        raise SettingError(f"{where}: per_channel is for activations; {selected.name} wants out_channel or in_channel")
    if granularity == "in_channel" and len(shape) < 2:
        raise SettingError(f"{where}: {selected.name} of shape {shape} has no input channels")
    try:
        _count_blocks(granularity, selected.value)
    except (AssertionError, ValueError, RuntimeError, IndexError, ZeroDivisionError):
        raise SettingError(f"{where}: blocks of {granularity} do not tile {selected.name} of shape {shape}") from None


def _count_blocks(granularity: Any, value: Tensor) -> tuple[int, ...]:
    """How many blocks there are along each dimension; whatever NNI's `Scaling` raises where they do not tile."""
    if granularity in (None, "default", "out_channel"):
        scaler = Scaling([1], "back", -1)
    elif granularity == "in_channel":
        scaler = Scaling([-1, 1], "back", -1)
    else:
        # A block, [2, 2], or the arguments of `Scaling`, ([2, 2], "front").
        is_block = all(isinstance(item, int) for item in granularity)
        scaler = Scaling(granularity) if is_block else Scaling(*granularity)
        scaler.validate(value.detach())
    return tuple(scaler.shrink(value.detach(), keepdim=True).shape)


def _check_align(selected: Selected, model: nn.Module, names: set[str]) -> None:
    """`align` must take its mask from dimensions of a parameter that an entry selects."""
    align = selected.setting.get("align")
    if align is None or selected.value is None:
        return
    where = f"{selected.where}.align"
    owner = selected.module if align["module_name"] is None else align["module_name"]
    source_name = f"{owner}.{align['target_name']}"
    try:
        source = getattr(model.get_submodule(owner), align["target_name"])
    except AttributeError:
        raise SettingError(f"{where}: {type(model).__name__} has no {source_name}") from None
    if source_name not in names:
        raise SettingError(
            f"{where}: {selected.name} takes its mask from {source_name}, which no entry selects; select it, too"
        )
    if isinstance(source, Tensor):
        outside = [dim for dim in align["dims"] if not -source.dim() <= dim < source.dim()]
        if outside:
            raise SettingError(f"{where}.dims: {outside} of {source_name}, shape {tuple(source.shape)}")


def _check_dependencies(selected: list[Selected]) -> None:
    """All members of a dependency group lose the same blocks, so they must have the same number of blocks."""
    first: dict[object, tuple[str, tuple[int, ...]]] = {}
    for target in selected:
        group = target.setting.get("dependency_group_id")
        if group is None or target.setting.get("align") is not None or not isinstance(target.value, Tensor):
            continue
        counts = _count_blocks(target.setting.get("granularity"), target.value)
        name, expected = first.setdefault(group, (target.name, counts))
        if counts != expected:
            raise SettingError(
                f"{target.where}.dependency_group_id: {target.name} has {counts} blocks and {name} has {expected}, so "
                f"they cannot lose the same blocks, as members of the group {group!r} must"
            )
