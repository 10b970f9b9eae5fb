"""The form that a plan has in a file: JSON with a version and a digest.

All numbers of a plan are whole numbers, or float64 numbers in vectors no longer than a layer is wide.  JSON holds both
exactly: Python writes a float64 number with as many digits as identify it, and a negative zero with its sign.
"""

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, ValidationError

from ..errors import FileFormatError
from .plan_parts import GroupPlan, Merge, QueryScaling, SizeChange

FORMAT = "nni_sparsevd.plan"
VERSION = 1
Indices = Annotated[tuple[NonNegativeInt, ...], Field(min_length=1)]


@dataclass(frozen=True)
class NormDocument:
    """A norm that loses channels: the dimension that holds them, and the constants that they carried."""

    channel_dim: Annotated[int, Field(ge=-1)]
    removed: list[FiniteFloat]
    indices: Indices | None = None
    channels: NonNegativeInt = 0


class PlanDocument(BaseModel):
    """What a plan file holds besides its format, version and digest.  An axis is written as "TENSOR:DIMENSION"."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    groups: tuple[GroupPlan, ...]
    shapes: dict[str, tuple[NonNegativeInt, ...]]
    cuts: dict[str, Indices]
    folds: dict[str, list[FiniteFloat]]
    merges: dict[str, tuple[Merge, ...]]
    sizes: tuple[SizeChange, ...]
    scales: tuple[QueryScaling, ...]
    norms: dict[str, NormDocument]


def encode_plan(document: dict[str, Any]) -> str:
    """The text of a plan file; `document` has the fields of `PlanDocument`, as values that JSON can hold.

    Raises:
        FileFormatError: A number is infinite or NaN.
    """
    whole = {"format": FORMAT, "version": VERSION, **document}
    digest = _digest(whole)
    if digest is None:
        raise FileFormatError("the plan holds a number that JSON cannot hold: a constant of it is infinite or NaN")
    return _lay_out({**whole, "digest": digest})


def decode_plan(content: Any, source: str) -> PlanDocument:
    """The inverse, for parsed JSON; `source` is the file's name for messages.

    Raises:
        FileFormatError: The content is no plan, is of another version, or was altered since it was written.
    """
    if not isinstance(content, dict) or "format" not in content:
        raise FileFormatError(f"{source}: no plan that can be applied; an older release wrote the account alone")
    if content["format"] != FORMAT:
        raise FileFormatError(f"{source}: its format is {content['format']!r}, not {FORMAT!r}")
    if content.get("version") != VERSION:
        raise FileFormatError(f"{source}: format version {content.get('version')}, this release reads {VERSION}")
    fields = {key: value for key, value in content.items() if key not in ("format", "version", "digest")}
    digest = _digest({"format": FORMAT, "version": VERSION, **fields})
    if digest is None or content.get("digest") != digest:
        raise FileFormatError(f"{source}: altered since it was written: its content does not match its digest")
    try:
        return PlanDocument.model_validate_json(json.dumps(fields))  # strict rules let JSON's lists be tuples
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(key) for key in first["loc"])
        raise FileFormatError(f"{source}: {place}: {first['msg']}") from None


def _digest(content: dict[str, Any]) -> str | None:
    """Of the content, not of its layout: keys in order, no spaces.  None where a number is infinite or NaN."""
    try:
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError:
        return None
    return blake2b(canonical.encode(), digest_size=16).hexdigest()


def _lay_out(document: dict[str, Any]) -> str:
    """JSON with a line for each group, tensor or module: long vectors stay on one line, where they can be skipped."""
    blocks = []
    for key, value in document.items():
        if isinstance(value, dict) and value:
            lines = [f"  {json.dumps(name)}: {json.dumps(entry)}" for name, entry in value.items()]
            text = "{\n" + ",\n".join(lines) + "\n }"
        elif isinstance(value, list) and value:
            text = "[\n" + ",\n".join(f"  {json.dumps(entry)}" for entry in value) + "\n ]"
        else:
            text = json.dumps(value)
        blocks.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(blocks) + "\n}\n"
