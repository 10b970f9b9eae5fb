"""Channels: a network traced to operators, and the coupled groups that its channels form.

From a network to a `ChannelGraph`, in the order in which to read the files:

1. *Trace.*  The network runs once without data, and every operator becomes a `Node` of a `Trace` (`nodes`, `traces`,
   `recorder`, `tracing`).  Sizes in its code remember which attribute they come from (`origins`).
2. *Rules.*  For each operator of PyTorch, one rule says what becomes of the channels that enter it, and another what
   becomes of constants (`operators`; begin with `rows` and `reductions` there).
3. *Walk.*  The rules are applied to the nodes in order.  They state equations between indices, links and pins
   (`walk`, `equations`, `links`, `pins`).
4. *Solve.*  The equations turn indices into channels, and channels of one kind form a group (`build`, `groups`,
   `norms`).
5. *Try.*  A copy that has lost some channels of every group runs once.  Channels whose number the code cannot follow
   are pinned (`code_sizes`, `failures`, `suspects`).

Then the graph is used: `cuts` cuts tensors, `silencers` finds where a gate can stand, and `other_sizes` traces the
network at other input sizes, for the constants that `shrinking` follows.  The other files know no channels: they read
example inputs, copy networks, and name their parts.

The words of this room:

- An **axis** is one dimension of a parameter or buffer: `("conv1.weight", 0)`.
- An **index** is a place along an axis.  Each index has a number, its index id, while the operators of the network are
  walked over (`IndexIds`).
- A **channel** is a set of indices that live and die together: row 3 of a convolution's weight, element 3 of its bias
  and of the norm after it, column 3 of the weight that reads it.  Channels are numbered, too (`ChannelIds`).
- A **channel group** holds the channels of one kind: those that have indices on the same axes (`ChannelGroup`).
- A **link** couples channels across a reshape that splits or merges axes.  A head, or one dimension of all heads, is an
  *owner*; the rows of the weight that writes all heads are *members*.  A member leaves exactly when one of its owners
  does (`Link`).
- A **pin** says that a channel cannot be removed, and why (`Pins`).
- A **writer** is an operator that makes channels, a **reader** one that contracts them with a weight.
- A **live** value depends on the input of the network; any other value is a constant.

For example, `nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))` has six axes:

| axis | index ids after the walk | channels after solving |
|---|---|---|
| `("0.weight", 0)` | 0 1 2 | 0 1 2 |
| `("0.weight", 1)` | 3 4 | 3 4 |
| `("0.bias", 0)` | 5 6 7 | 0 1 2 |
| `("2.weight", 0)` | 8 | 5 |
| `("2.weight", 1)` | 9 10 11 | 0 1 2 |
| `("2.bias", 0)` | 12 | 5 |

The rule of a linear layer has stated that its bias has the indices of its rows (0 = 5, 1 = 6, 2 = 7, and 8 = 12), and
the second layer's rule that its columns are what the first one wrote (0 = 9, 1 = 10, 2 = 11).  So channels 0, 1 and 2
form the group "0", which may lose some.  Channel 5 is the group "2", pinned as the output of the network.  Channels 3
and 4 are columns that read an input of the network: no operator writes them, so they have no group.
"""

from .build import channel_graph
from .code_sizes import tighten_graph
from .copies import copy_module
from .culprits import find_failing_module, find_source_of_nan
from .cuts import cut_, kept_indices, remove_indices
from .equations import Axis
from .example_inputs import CallArguments, Inputs, as_arguments, take_first_sample, use_other_numbers
from .groups import ChannelGraph, ChannelGroup, Product, Reader, RememberingNorm, Writer
from .links import ChannelIds, Flags
from .modes import clear_caches_, copy_model, evaluation_mode, without_compilation
from .multihead import ShrinkableMultiheadAttention, bind_attentions_, free_attentions_
from .names import is_inside, list_modules, named_states
from .nodes import Node, map_nodes
from .operators import (
    ATTENTION,
    PRODUCTS,
    READERS,
    TRANSPOSED,
    NotCovered,
    bias_of,
    call_rule,
    compress,
    constant_at_every_place,
    constant_at_reader,
    expand_fully,
    find_constant_rule,
    is_known,
    is_reader,
    keep_zeros,
    live_like,
    make_uniform,
    map_tensors,
    operator_name,
    pads_zeros,
    rows_of_weight,
    search_weights_once,
    to_double,
    used_taps,
)
from .other_sizes import InputDim, OtherSizes, Sizes, resize_inputs, trace_other_sizes
from .preconditions import require_convertible, require_numbers, require_parameters, require_traceable
from .pytrees import PLAIN, map_leaves, name_leaves, to_plain
from .silencers import Silencer, Silencing, find_silencing
from .traces import Trace
from .tracing import trace
from .users import find_users

__all__ = [
    "ATTENTION",
    "PLAIN",
    "PRODUCTS",
    "READERS",
    "TRANSPOSED",
    "Axis",
    "CallArguments",
    "ChannelGraph",
    "ChannelGroup",
    "ChannelIds",
    "Flags",
    "InputDim",
    "Inputs",
    "Node",
    "NotCovered",
    "OtherSizes",
    "Product",
    "Reader",
    "RememberingNorm",
    "ShrinkableMultiheadAttention",
    "Silencer",
    "Silencing",
    "Sizes",
    "Trace",
    "Writer",
    "as_arguments",
    "bias_of",
    "bind_attentions_",
    "call_rule",
    "channel_graph",
    "clear_caches_",
    "compress",
    "constant_at_every_place",
    "constant_at_reader",
    "copy_model",
    "copy_module",
    "cut_",
    "evaluation_mode",
    "expand_fully",
    "find_constant_rule",
    "find_failing_module",
    "find_silencing",
    "find_source_of_nan",
    "find_users",
    "free_attentions_",
    "is_inside",
    "is_known",
    "is_reader",
    "keep_zeros",
    "kept_indices",
    "list_modules",
    "live_like",
    "make_uniform",
    "map_leaves",
    "map_nodes",
    "map_tensors",
    "name_leaves",
    "named_states",
    "operator_name",
    "pads_zeros",
    "remove_indices",
    "require_convertible",
    "require_numbers",
    "require_parameters",
    "require_traceable",
    "resize_inputs",
    "rows_of_weight",
    "search_weights_once",
    "take_first_sample",
    "tighten_graph",
    "to_double",
    "to_plain",
    "trace",
    "trace_other_sizes",
    "use_other_numbers",
    "used_taps",
    "without_compilation",
]
