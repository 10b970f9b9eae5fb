"""What is known of PyTorch's operators: one row each, with a rule for channels and a rule for constants.

A channel rule gets the equations, the node and its arguments, tensors as `TrackedTensor`.  It states which channels of
its arguments and its result are the same, and returns the tracked result.  An operator without a channel rule pins
every channel that enters it: these stay, and the plan says why.

A constant rule gets the node and its arguments as abstract values, and returns the abstract value of the result.  The
result of an operator without a constant rule is computed if nothing that enters it depends on the input, and counts as
depending on the input otherwise.

For example, the row of `transpose` is

    Operator((aten.transpose.int,), transpose_channels, same_move_constant)

`transpose_channels(equations, node, x, first, second)` returns a `TrackedTensor` with the ids of two axes exchanged,
and `same_move_constant(node, x, first, second)` transposes the abstract value.  Neither has anything else to state: a
rule that couples channels calls `equations.equate` or `equations.link`, one that prevents their removal
`equations.pin`, and one that gets a size from the code `equations.record_size`.

`rows` says what a row is, `table` finds the row of an operator, and `abstract_values` has what constant rules compute
with.  Each other file holds the rules of one family of operators, and its rows at the end.  A constant rule needs a
case in tests/test_constants.py; tests/test_operator_law.py shrinks networks with an operator between two layers.
"""

from .abstract_values import (
    LIVE,
    compress,
    expand_fully,
    full_shape,
    is_known,
    keep_zeros,
    live_like,
    make_uniform,
    map_tensors,
    to_double,
)
from .attention import ATTENTION, PRODUCTS
from .contractions import (
    CONVOLUTIONS,
    READERS,
    TRANSPOSED,
    bias_of,
    channel_dim,
    constant_at_every_place,
    constant_at_reader,
    is_reader,
    pads_zeros,
    rows_of_weight,
    search_weights_once,
    used_taps,
)
from .lookups import LOOKUPS
from .normalizations import WEIGHT_NORM
from .reshapes import match_axes
from .rows import NoRule, NotCovered, Operator, argument_of, call_rule, operator_name, shape_of
from .table import OPERATORS, find_channel_rule, find_constant_rule, find_row

__all__ = [
    "ATTENTION",
    "CONVOLUTIONS",
    "LIVE",
    "LOOKUPS",
    "OPERATORS",
    "PRODUCTS",
    "READERS",
    "TRANSPOSED",
    "WEIGHT_NORM",
    "NoRule",
    "NotCovered",
    "Operator",
    "argument_of",
    "bias_of",
    "call_rule",
    "channel_dim",
    "compress",
    "constant_at_every_place",
    "constant_at_reader",
    "expand_fully",
    "find_channel_rule",
    "find_constant_rule",
    "find_row",
    "full_shape",
    "is_known",
    "is_reader",
    "keep_zeros",
    "live_like",
    "make_uniform",
    "map_tensors",
    "match_axes",
    "operator_name",
    "pads_zeros",
    "rows_of_weight",
    "search_weights_once",
    "shape_of",
    "to_double",
    "used_taps",
]
