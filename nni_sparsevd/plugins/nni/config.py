"""NNI's config_list, checked before anything happens: every message names the entry, the key, and what to write.

NNI's own checks say neither, and let through what selects nothing or fails deep inside a pruner.
"""

import difflib
import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from nni.compression.base.config import select_modules_by_config
from nni.compression.base.setting import PruningSetting
from nni.compression.utils.scaling import Scaling
from pydantic import ConfigDict, StrictFloat, StrictInt, StrictStr, ValidationError
from torch import Tensor, nn

from ...errors import SettingError
from ...recipe import Settings, describe

Names = Annotated[list[StrictStr], MinLen(1)]
Block = list[StrictInt]
Granularity = (
    Literal["default", "in_channel", "out_channel", "per_channel"] | Block | tuple[Block, Literal["front", "back"]]
)
Granularity |= tuple[Block, Literal["front", "back"], StrictInt]


class Align(Settings):
    """Take the mask of another target over."""

    module_name: StrictStr | None
    target_name: StrictStr
    dims: list[StrictInt]


class Target(Settings):
    """What NNI lets one say of one target, or of all targets of an entry."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sparse_ratio: Annotated[StrictFloat, Ge(0), Le(1)] | None = None
    sparse_threshold: Annotated[StrictFloat, Ge(0), Le(1)] | None = None
    max_sparse_ratio: Annotated[StrictFloat | StrictInt, Gt(0), Le(1)] | None = None
    min_sparse_ratio: Annotated[StrictFloat | StrictInt, Ge(0), Lt(1)] | None = None
    global_group_id: StrictInt | StrictStr | None = None
    dependency_group_id: StrictInt | StrictStr | None = None
    internal_metric_block: Annotated[StrictInt, Ge(1)] | None = None
    granularity: Granularity | None = None
    apply_method: Literal["bypass", "mul", "add"] | None = None
    align: Align | None = None


class Entry(Target):
    """One entry of a config_list."""

    op_types: Names | None = None
    op_names: Names | None = None
    op_names_re: Names | None = None
    exclude_op_names: list[StrictStr] | None = None
    exclude_op_types: list[StrictStr] | None = None
    exclude_op_names_re: list[StrictStr] | None = None
    target_names: Names | None = None
    target_settings: dict[str, Target] | None = None


def check_config(model: nn.Module, config_list: Any) -> None:
    """Raise `SettingError` for the first thing in `config_list` (in today's keys) that cannot mean what it says."""
    if not isinstance(config_list, list | tuple):
        raise SettingError(f"config_list: a list of dictionaries, found {type(config_list).__name__}")
    ratios: dict[tuple[str, object], tuple[str, float]] = {}
    for index, given in enumerate(config_list):
        where = f"config_list[{index}]"
        entry = _parsed(where, given)
        _check_selection(where, entry, model)
        modules, public, _ = select_modules_by_config(model, dict(given))
        if not modules:
            keys = ", ".join(f"{key}={given[key]}" for key in given if key.startswith(("op_", "exclude_")))
            raise SettingError(f"{where}: selects no module of {type(model).__name__}: {keys}")
        for part, target in _parts(where, entry):
            _check_numbers(part, target)
            for kind in ("dependency_group_id", "global_group_id"):
                _check_group(part, target, kind, ratios)
        for name, module in modules.items():
            _check_targets(where, entry, name, module, dict(public), model)


def _parsed(where: str, given: Any) -> Entry:
    if not isinstance(given, dict):
        raise SettingError(f"{where}: a dictionary, found {given!r}")
    try:
        return Entry.model_validate(given)
    except ValidationError as error:
        wrong = {str(problem["loc"][0]) for problem in error.errors() if problem["type"] == "extra_forbidden"}
        near = [f"{key}: did you mean {match[0]}?" for key in sorted(wrong)
                if (match := difflib.get_close_matches(key, Entry.model_fields, 1))]  # fmt: skip
        known = [] if not wrong else [f"known keys: {', '.join(Entry.model_fields)}"]
        lines = [f"{where}.{line}" for line in dict.fromkeys(describe(error).splitlines())]
        raise SettingError("\n".join([*lines, *near, *known])) from None


def _parts(where: str, entry: Entry) -> Iterator[tuple[str, Target]]:
    yield where, entry
    for name, target in (entry.target_settings or {}).items():
        yield f"{where}.target_settings[{name!r}]", target


def _check_numbers(where: str, target: Target) -> None:
    low, high = target.min_sparse_ratio, target.max_sparse_ratio
    if target.sparse_ratio is not None and target.sparse_threshold is not None:
        raise SettingError(f"{where}: sparse_ratio and sparse_threshold exclude each other; give one, or neither")
    if low is not None and high is not None and low > high:
        raise SettingError(f"{where}.min_sparse_ratio: {low} is above max_sparse_ratio, {high}")


def _check_group(where: str, target: Target, kind: str, seen: dict[tuple[str, object], tuple[str, float]]) -> None:
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


def _check_targets(
    where: str, entry: Entry, name: str, module: nn.Module, public: dict[str, Any], model: nn.Module
) -> None:
    kind = type(module).__name__
    if kind not in PruningSetting.registry:
        raise SettingError(
            f"{where}: selects {name!r}, but NNI does not know what to prune in {kind}; it knows "
            f"{', '.join(PruningSetting.registry)}. Others: nni.compression.base.setting.PruningSetting.register"
        )
    known = {**PruningSetting.registry[kind], **(entry.target_settings or {})}
    for target in entry.target_names or ():
        if target not in known and not target.startswith(("_input_", "_output_")):
            raise SettingError(
                f"{where}.target_names: {kind} {name!r} has no target {target!r}; it has {', '.join(known)}"
            )
    for target in known:
        if not target.startswith(("_input_", "_output_")) and not hasattr(module, target):
            raise SettingError(f"{where}.target_settings: {kind} {name!r} has no attribute {target!r}")
    try:
        settings = PruningSetting.get(module, public)
    except KeyError as error:
        raise SettingError(f"{where}.target_names: NNI does not know how to prune {error} of {kind} {name!r}") from None
    for target, setting in settings.items():
        active = setting.get("sparse_ratio") is not None or setting.get("sparse_threshold") is not None
        if target.startswith(("_input_", "_output_")):
            if active:
                raise SettingError(f"{where}: {target} of {name!r}: only parameters carry a posterior, not activations")
            continue
        value = getattr(module, target)
        if isinstance(value, Tensor):
            _check_granularity(where, f"{name}.{target}", setting.get("granularity"), value)
        _check_align(where, setting.get("align"), name, model, value)


def _check_granularity(where: str, target: str, granularity: Any, value: Tensor) -> None:
    if granularity == "per_channel":
        raise SettingError(
            f"{where}.granularity: per_channel is for activations; {target} wants out_channel or in_channel"
        )
    if granularity == "in_channel" and value.dim() < 2:
        raise SettingError(f"{where}.granularity: {target} of shape {tuple(value.shape)} has no input channels")
    if granularity is None or isinstance(granularity, str):
        return
    parts = (granularity,) if all(isinstance(item, int) for item in granularity) else tuple(granularity)
    try:
        Scaling(*parts).validate(value.detach())
    except (AssertionError, ValueError, RuntimeError, IndexError, ZeroDivisionError):
        raise SettingError(
            f"{where}.granularity: blocks of {granularity} do not tile {target} of shape {tuple(value.shape)}"
        ) from None


def _check_align(where: str, align: Any, name: str, model: nn.Module, value: Any) -> None:
    if align is None or value is None:
        return
    owner = name if align["module_name"] is None else align["module_name"]
    try:
        source = getattr(model.get_submodule(owner), align["target_name"])
    except AttributeError:
        raise SettingError(f"{where}.align: {type(model).__name__} has no {owner}.{align['target_name']}") from None
    outside = [dim for dim in align["dims"] if isinstance(source, Tensor) and not -source.dim() <= dim < source.dim()]
    if outside:
        raise SettingError(
            f"{where}.align.dims: {outside} of {owner}.{align['target_name']}, shape {tuple(source.shape)}"
        )
