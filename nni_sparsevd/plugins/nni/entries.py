"""One entry of NNI's config_list: its keys, their types and ranges, by themselves."""

import difflib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import ConfigDict, StrictFloat, StrictInt, StrictStr, ValidationError

from ...errors import SettingError
from ...settings import Settings, describe_validation_error

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


def parsed(where: str, given: Any) -> Entry:
    """The entry; raises `SettingError` that names each bad key, with `where` in front."""
    if not isinstance(given, dict):
        raise SettingError(f"{where}: a dictionary, found {given!r}")
    for key, value in given.items():
        if value is None:
            raise SettingError(f"{where}.{key}: None; leave the key out")
    try:
        entry = Entry.model_validate(given)
    except ValidationError as error:
        wrong = {str(problem["loc"][0]) for problem in error.errors() if problem["type"] == "extra_forbidden"}
        near = [f"{key}: did you mean {match[0]}?" for key in sorted(wrong)
                if (match := difflib.get_close_matches(key, Entry.model_fields, 1))]  # fmt: skip
        known = [] if not wrong else [f"known keys: {', '.join(Entry.model_fields)}"]
        lines = [f"{where}.{line}" for line in dict.fromkeys(describe_validation_error(error).splitlines())]
        raise SettingError("\n".join([*lines, *near, *known])) from None
    for part, target in parts(where, entry):
        _check_numbers(part, target)
    return entry


def parts(where: str, entry: Entry) -> Iterator[tuple[str, Target]]:
    """What an entry says of all targets, and of single ones, each with its place."""
    yield where, entry
    for name, target in (entry.target_settings or {}).items():
        yield f"{where}.target_settings[{name!r}]", target


def _check_numbers(where: str, target: Target) -> None:
    low, high = target.min_sparse_ratio, target.max_sparse_ratio
    if target.sparse_ratio is not None and target.sparse_threshold is not None:
        raise SettingError(f"{where}: sparse_ratio and sparse_threshold exclude each other; give one, or neither")
    if low is not None and high is not None and low > high:
        raise SettingError(f"{where}.min_sparse_ratio: {low} is above max_sparse_ratio, {high}")
