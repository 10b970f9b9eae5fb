"""What a plan consists of: the account of a channel group, and changes to weights, attributes and attentions.

The types of the fields are also the checks that a plan file has to pass (see `plan_file`).
"""

from dataclasses import dataclass

from pydantic import FiniteFloat, NonNegativeInt, PositiveInt


@dataclass(frozen=True)
class GroupPlan:
    """What happens to one channel group."""

    name: str
    """Name of the group in the channel graph: the module that writes it first, numbered if that writes several."""
    modules: tuple[str, ...]
    """Modules that hold a parameter or a buffer of these channels."""
    channels: int
    """How many channels the group has before anything is removed."""
    removed: int
    """How many of them are removed."""
    dead: int
    """How many of the kept ones are dead or unread: they do no work, but cannot be removed exactly."""
    reason: str
    """Why dead and unread channels are kept, or why the group is pinned; empty where nothing has to be said."""


@dataclass(frozen=True)
class Merge:
    """Add `factor` times the input channel `source` of a weight to its input channel `into`."""

    into: NonNegativeInt
    source: NonNegativeInt
    factor: FiniteFloat


@dataclass(frozen=True)
class SizeChange:
    """An attribute of a module that says how many channels there are, before and after."""

    module: str
    attribute: str
    position: NonNegativeInt | None
    """Where the number stands in the attribute, if that is a list or a tuple."""
    before: NonNegativeInt
    after: NonNegativeInt


@dataclass(frozen=True)
class QueryScaling:
    """An attention that loses dimensions: its queries are multiplied by (after / before)**0.5.

    The attention divides the products of queries and keys by the root of the number of dimensions.  With fewer of them
    it divides by less; the factor makes up for that.
    """

    module: str
    """The module that runs the attention, and may hold the scale before**-0.5 as an attribute."""
    weight: str
    bias: str | None
    rows: tuple[NonNegativeInt, ...]
    """Rows of `weight` and `bias` that write the queries."""
    before: PositiveInt
    after: PositiveInt
