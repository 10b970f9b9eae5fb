"""NNI's config_list, checked before anything happens: every message names the entry, the key, and what to write.

NNI's own checks say neither, and let through what selects nothing or fails deep inside a pruner.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nni.compression.base.config import select_modules_by_config
from nni.compression.base.setting import PruningSetting
from nni.compression.utils.scaling import Scaling
from torch import Tensor, nn

from ...errors import SettingError
from .entries import Entry, Target, parsed, parts

ACTIVATIONS = ("_input_", "_output_")


@dataclass(frozen=True)
class Selected:
    """A target that an entry selects, with all that NNI will know of it."""

    where: str
    module: str
    target: str
    setting: dict[str, Any]
    value: Any

    @property
    def name(self) -> str:
        """As a parameter's."""
        return f"{self.module}.{self.target}"


def check_config(model: nn.Module, config_list: Any) -> None:
    """Raise `SettingError` for the first thing in `config_list` (in today's keys) that cannot mean what it says."""
    if not isinstance(config_list, list | tuple):
        raise SettingError(f"config_list: a list of dictionaries, found {type(config_list).__name__}")
    ratios: dict[tuple[str, object], tuple[str, float]] = {}
    everything: list[Selected] = []
    for index, given in enumerate(config_list):
        where = f"config_list[{index}]"
        entry = parsed(where, given)
        _check_selection(where, entry, model)
        modules, public, _ = select_modules_by_config(model, dict(given))
        if not modules:
            keys = ", ".join(f"{key}={given[key]}" for key in given if key.startswith(("op_", "exclude_")))
            raise SettingError(f"{where}: selects no module of {type(model).__name__}: {keys}")
        for part, target in parts(where, entry):
            for kind in ("dependency_group_id", "global_group_id"):
                _check_ratio(part, target, kind, ratios)
        for name in sorted(modules):
            everything += _targets(where, entry, name, modules[name], dict(public))
    for selected in everything:
        _check_granularity(selected)
        _check_align(selected, model, {other.module for other in everything})
    _check_dependencies(everything)


def _check_ratio(where: str, target: Target, kind: str, seen: dict[tuple[str, object], tuple[str, float]]) -> None:
    group = getattr(target, kind)
    if group is None or target.sparse_ratio is None:
        return
    first, ratio = seen.setdefault((kind, group), (where, target.sparse_ratio))
    if ratio != target.sparse_ratio:
        raise SettingError(
            f"{where}.sparse_ratio: {target.sparse_ratio}, but {first} asks for {ratio} in the same {kind} {group!r}"
        )


def _check_selection(where: str, entry: Entry, model: nn.Module) -> None:
    if not (entry.op_types or entry.op_names or entry.op_names_re):
        raise SettingError(f"{where}: needs at least one of op_types, op_names, op_names_re")
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for key in ("op_names", "exclude_op_names"):
        for name in getattr(entry, key) or ():
            if name not in names:
                near = difflib.get_close_matches(name, names, 3)
                hint = f"; did you mean {', '.join(near)}?" if near else ""
                raise SettingError(f"{where}.{key}: {type(model).__name__} has no module {name!r}{hint}")
    for key in ("op_names_re", "exclude_op_names_re"):
        for pattern in getattr(entry, key) or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise SettingError(f"{where}.{key}: {pattern!r} is no regular expression: {error}") from None


def _targets(where: str, entry: Entry, name: str, module: nn.Module, public: dict[str, Any]) -> Iterator[Selected]:
    """The parameters of a module that an entry selects."""
    kind = type(module).__name__
    if kind not in PruningSetting.registry:
        raise SettingError(
            f"{where}: selects {name!r}, but NNI does not know what to prune in {kind}; it knows "
            f"{', '.join(PruningSetting.registry)}. Others: nni.compression.base.setting.PruningSetting.register"
        )
    known = {**PruningSetting.registry[kind], **(entry.target_settings or {})}
    for target in entry.target_names or ():
        if target not in known and not target.startswith(ACTIVATIONS):
            names = ", ".join(known)
            raise SettingError(f"{where}.target_names: {kind} {name!r} has no target {target!r}; it has {names}")
    for target in known:
        if not target.startswith(ACTIVATIONS) and not hasattr(module, target):
            raise SettingError(f"{where}.target_settings: {kind} {name!r} has no attribute {target!r}")
    try:
        settings = PruningSetting.get(module, public)
    except KeyError as error:
        raise SettingError(f"{where}.target_names: NNI does not know how to prune {error} of {kind} {name!r}") from None
    for target, setting in settings.items():
        if not target.startswith(ACTIVATIONS):
            yield Selected(where, name, target, setting, getattr(module, target))
        elif setting.get("sparse_ratio") is not None or setting.get("sparse_threshold") is not None:
            raise SettingError(f"{where}: {target} of {name!r}: only parameters carry a posterior, not activations")


def _check_granularity(one: Selected) -> None:
    granularity = one.setting.get("granularity")
    if not isinstance(one.value, Tensor):
        return
    where, shape = f"{one.where}.granularity", tuple(one.value.shape)
    if granularity == "per_channel":
        raise SettingError(f"{where}: per_channel is for activations; {one.name} wants out_channel or in_channel")
    if granularity == "in_channel" and len(shape) < 2:
        raise SettingError(f"{where}: {one.name} of shape {shape} has no input channels")
    try:
        _block_shape(granularity, one.value)
    except (AssertionError, ValueError, RuntimeError, IndexError, ZeroDivisionError):
        raise SettingError(f"{where}: blocks of {granularity} do not tile {one.name} of shape {shape}") from None


def _block_shape(granularity: Any, value: Tensor) -> tuple[int, ...]:
    """How many blocks there are along each dimension."""
    if granularity in (None, "default", "out_channel"):
        scaler = Scaling([1], "back", -1)
    elif granularity == "in_channel":
        scaler = Scaling([-1, 1], "back", -1)
    else:
        whole = all(isinstance(item, int) for item in granularity)
        scaler = Scaling(*((granularity,) if whole else granularity))
        scaler.validate(value.detach())
    return tuple(scaler.shrink(value.detach(), keepdim=True).shape)


def _check_align(one: Selected, model: nn.Module, selected: set[str]) -> None:
    align = one.setting.get("align")
    if align is None or one.value is None:
        return
    owner = one.module if align["module_name"] is None else align["module_name"]
    try:
        source = getattr(model.get_submodule(owner), align["target_name"])
    except AttributeError:
        raise SettingError(f"{one.where}.align: {type(model).__name__} has no {owner}.{align['target_name']}") from None
    if owner not in selected:
        raise SettingError(f"{one.where}.align: no entry selects {owner!r}, so it has no mask to take over")
    outside = [dim for dim in align["dims"] if isinstance(source, Tensor) and not -source.dim() <= dim < source.dim()]
    if outside:
        shape = tuple(source.shape)
        raise SettingError(f"{one.where}.align.dims: {outside} of {owner}.{align['target_name']}, shape {shape}")


def _check_dependencies(everything: list[Selected]) -> None:
    """All members of a dependency group lose the same blocks, so they must have the same."""
    first: dict[object, tuple[str, tuple[int, ...]]] = {}
    for one in everything:
        group = one.setting.get("dependency_group_id")
        if group is None or one.setting.get("align") is not None or not isinstance(one.value, Tensor):
            continue
        shape = _block_shape(one.setting.get("granularity"), one.value)
        name, expected = first.setdefault(group, (one.name, shape))
        if shape != expected:
            raise SettingError(
                f"{one.where}.dependency_group_id: {one.name} has {shape} blocks and {name} has {expected}, so they "
                f"cannot lose the same, as members of the group {group!r} must"
            )
