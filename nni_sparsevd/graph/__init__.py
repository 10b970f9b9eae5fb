"""Channels: a network traced to operators, and the coupled groups that its channels form."""

from .groups import CONVOLUTIONS, READERS, TRANSPOSED, ChannelGraph, ChannelGroup, Reader, Writer, channel_graph, item
from .labels import Atoms, Axis
from .trace import Inputs, Trace, as_tuple, evaluation_mode

__all__ = [
    "CONVOLUTIONS",
    "READERS",
    "TRANSPOSED",
    "Atoms",
    "Axis",
    "ChannelGraph",
    "ChannelGroup",
    "Inputs",
    "Reader",
    "Trace",
    "Writer",
    "as_tuple",
    "channel_graph",
    "evaluation_mode",
    "item",
]
