"""Channels: a network traced to operators, and the coupled groups that its channels form."""

from .build import channel_graph
from .code_sizes import tighten_graph
from .groups import ChannelGraph, ChannelGroup, Product, Reader, RememberingNorm, SizeAttribute, Writer
from .labels import Axis, ChannelIds, Flags, Link
from .reshapes import match_axes
from .resize import cut_, kept_indices, named_states, remaining_sizes, remove_indices
from .rules import CONVOLUTIONS, READERS, TRANSPOSED
from .scales import AttentionScale
from .tracing import Inputs, Trace, as_tuple, clear_caches_, copy_model, evaluation_mode

__all__ = [
    "CONVOLUTIONS",
    "READERS",
    "TRANSPOSED",
    "AttentionScale",
    "Axis",
    "ChannelGraph",
    "ChannelGroup",
    "ChannelIds",
    "Flags",
    "Inputs",
    "Link",
    "Product",
    "Reader",
    "RememberingNorm",
    "SizeAttribute",
    "Trace",
    "Writer",
    "as_tuple",
    "channel_graph",
    "clear_caches_",
    "copy_model",
    "cut_",
    "evaluation_mode",
    "kept_indices",
    "match_axes",
    "named_states",
    "remaining_sizes",
    "remove_indices",
    "tighten_graph",
]
