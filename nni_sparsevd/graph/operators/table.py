"""The table of operators: one row for each operator of PyTorch that anything is known of."""

from typing import Any

from torch._ops import OpOverload

from . import (
    attention,
    contractions,
    elementwise,
    factories,
    lookups,
    normalizations,
    ordering,
    pieces,
    reductions,
    reshapes,
    spatial,
    spectra,
)
from .rows import ChannelRule, ConstantRule, NoRule, Operator

FILES = (
    *(contractions, attention, normalizations, elementwise, factories),
    *(reshapes, pieces, lookups, ordering, reductions, spatial, spectra),
)


def _rows_by_target() -> dict[Any, Operator]:
    rows: dict[Any, Operator] = {}
    for file in FILES:
        for operator in file.OPERATORS:
            for target in operator.targets:
                if target in rows:
                    raise ValueError(
                        f"{target} has two rows in the table of operators; the second is in {file.__name__}"
                    )
                rows[target] = operator
    return rows


OPERATORS: dict[Any, Operator] = _rows_by_target()


def find_row(target: Any) -> Operator | None:
    """What is known of an operator; one that another library has added goes by its name, "library::operator"."""
    row = OPERATORS.get(target)
    if row is None and isinstance(target, OpOverload):
        row = OPERATORS.get(target._schema.name)
    return row


def find_channel_rule(target: Any) -> ChannelRule | None:
    """How channels pass through an operator; None where nothing is known."""
    operator = find_row(target)
    return None if operator is None or isinstance(operator.channel_rule, NoRule) else operator.channel_rule


def find_constant_rule(target: Any) -> ConstantRule | None:
    """How constants pass through an operator; None where nothing is known."""
    operator = find_row(target)
    return None if operator is None or isinstance(operator.constant_rule, NoRule) else operator.constant_rule
