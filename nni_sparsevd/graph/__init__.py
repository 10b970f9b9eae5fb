"""Channels: a network traced to operators, and the coupled groups that its channels form."""

from .build import channel_graph
from .code_sizes import follow
from .groups import ChannelGraph, ChannelGroup, Product, Reader, Remembered, Size, Writer
from .labels import Atoms, Axis, Flags, Link
from .reshapes import segments
from .resize import cut_, kept, left, states, without
from .rules import CONVOLUTIONS, READERS, TRANSPOSED
from .scales import Scale
from .tracing import Inputs, Trace, as_tuple, copy_of, evaluation_mode, forget_

__all__ = [
    "CONVOLUTIONS",
    "READERS",
    "TRANSPOSED",
    "Atoms",
    "Axis",
    "ChannelGraph",
    "ChannelGroup",
    "Flags",
    "Inputs",
    "Link",
    "Product",
    "Reader",
    "Remembered",
    "Scale",
    "Size",
    "Trace",
    "Writer",
    "as_tuple",
    "channel_graph",
    "copy_of",
    "cut_",
    "evaluation_mode",
    "follow",
    "forget_",
    "kept",
    "left",
    "segments",
    "states",
    "without",
]
