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
    Literal["default", "in_channel", "out_channel", "per_channel"]
    | Block
    | tuple[Block, Literal["front", "back"]]
    | tuple[Block, Literal["front", "back"], StrictInt]
)


class Align(Settings):
    """Take over the mask of another target."""

    module_name: StrictStr | None
    target_name: StrictStr
    dims: list[StrictInt]


class Target(Settings):
    """The keys that NNI knows for one target, or for all targets of an entry."""

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


def parse_entry(where: str, raw_entry: Any) -> Entry:
    """Check the keys and values of one entry.

    Args:
        where: The entry's place, as messages name it: config_list[0].
        raw_entry: What the user wrote.

    Raises:
        SettingError: A key or value is not what NNI takes.  One line for each.
    """
    if not isinstance(raw_entry, dict):
        raise SettingError(f"{where}: a dictionary, found {raw_entry!r}")
    for key, value in raw_entry.items():
        if value is None:
            raise SettingError(f"{where}.{key}: None; leave the key out")
    try:
        entry = Entry.model_validate(raw_entry)
    except ValidationError as error:
        raise SettingError(_explain(where, error)) from None
    for place, target in places_and_targets(where, entry):
        _check_numbers(place, target)
    return entry


def _explain(where: str, error: ValidationError) -> str:
    """One line for each problem; for keys that do not exist also the nearest key, and all that do."""
    lines = [f"{where}.{line}" for line in dict.fromkeys(describe_validation_error(error).splitlines())]
    unknown = sorted({str(problem["loc"][-1]) for problem in error.errors() if problem["type"] == "extra_forbidden"})
    for key in unknown:
        similar = difflib.get_close_matches(key, Entry.model_fields, 1)
        if similar:
            lines.append(f"{key}: did you mean {similar[0]}?")
    if unknown:
        lines.append(f"known keys: {', '.join(Entry.model_fields)}")
    return "\n".join(lines)


def places_and_targets(where: str, entry: Entry) -> Iterator[tuple[str, Target]]:
    """What an entry says of all targets, and of single ones, each with its place in the config_list."""
    yield where, entry
    for name, target in (entry.target_settings or {}).items():
        yield f"{where}.target_settings[{name!r}]", target


def _check_numbers(where: str, target: Target) -> None:
    """Numbers that are in range by themselves must not contradict each other."""
    low, high = target.min_sparse_ratio, target.max_sparse_ratio
    if target.sparse_ratio is not None and target.sparse_threshold is not None:
        raise SettingError(f"{where}: sparse_ratio and sparse_threshold exclude each other; give one, or neither")
    if low is not None and high is not None and low > high:
        raise SettingError(f"{where}.min_sparse_ratio: {low} is above max_sparse_ratio, {high}")
