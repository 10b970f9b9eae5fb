"""Where a factor of 0 silences channels for good: behind which modules, and at which of their outputs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .groups import ChannelGraph, ChannelGroup, Product, Writer
from .moves import MOVES, WRITERS_ALONG, WrittenRows, find_rows_behind
from .nodes import Node
from .operators import ATTENTION

aten = torch.ops.aten
SCALES = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar}
"""Operators that leave a zero what it is, where their second argument is a number of the code."""
Rows = dict[Node, NDArray[np.bool_]]
"""Writing operator -> a flag for each of its outputs."""


@dataclass(frozen=True)
class Silencer:
    """A module behind which a factor of 0 silences channels of a group."""

    layer: str
    """The module that holds the weight."""
    scaled: str
    """The layer or the norm behind it, whose parameters can take the factor up."""
    site: str
    """The module that returns the value: `scaled` itself, or an empty slot in it."""
    channel_dim: int
    """The dimension of the value that the channels are in."""
    places: NDArray[np.int64]  # shape: (outputs of the module,)
    """For each output the position in the group of its channel, -1 for an output that is left alone."""


@dataclass(frozen=True)
class Silencing:
    """What silences the channels of a group, or why nothing does."""

    group: ChannelGroup
    silencers: tuple[Silencer, ...] = ()
    """Multiplying by 0 behind all of these silences a channel at every reader."""
    obstacle: str = ""
    """Why there are none, with the name of the module."""


def find_silencing(graph: ChannelGraph, group: ChannelGroup) -> Silencing:
    """Find where a factor of 0 silences channels of a group for good.

    Args:
        graph: The channel graph of a network.
        group: One of its groups that is not pinned.

    Returns:
        The modules, or the reason why there are none.
    """
    if not group.writers:
        owner = group.axes[0][0]
        return Silencing(group, obstacle=f"what {owner} writes reaches a reader through a factor alone")
    silencing = _silence_writers(graph, group, _find_spared_rows(graph, group))
    if silencing.silencers or silencing.obstacle:
        return silencing
    # One weight writes what is spared and what is not, in two calls, and stands for both among the writers.  Where the
    # code gives it piece by piece, as in a cross-attention of PyTorch, the writer may have none of the channels.
    silencing = _silence_writers(graph, group, {})
    if silencing.silencers or silencing.obstacle:
        return silencing
    return Silencing(group, obstacle=f"no module returns what {group.writers[0].axis[0]} writes")


def _silence_writers(graph: ChannelGraph, group: ChannelGroup, spared: Rows) -> Silencing:
    """The modules behind the writers of a group, but for outputs that are spared."""
    silencers = []
    for writer in group.writers:
        places = graph.positions_of(_written_channels(graph, writer), group)
        if writer.node in spared:
            places = np.where(spared[writer.node], -1, places)
        if (places < 0).all():
            continue
        site = _find_site(writer)
        if site is None:
            return Silencing(group, obstacle=f"no module returns what {writer.axis[0]} writes")
        silencers.append(Silencer(writer.module, writer.site, site, writer.channel_dim, places))
    return Silencing(group, tuple(silencers))


def _written_channels(graph: ChannelGraph, writer: Writer) -> NDArray[np.int64]:
    """The channel of each output of a writer, shape (outputs,)."""
    channels: NDArray[np.int64] = graph.value_channels[writer.site_node][writer.channel_dim]
    return channels


def _find_site(writer: Writer) -> str | None:
    """The module that returns the value which a gate is to scale; None where no module does."""
    # Behind a norm with an activation inside it would be another value: timm's norms have an empty slot between the
    # two, which returns the norm's value.
    for module in writer.site_node.meta.get("returned_by", ()):
        if writer.site in (module, module.rpartition(".")[0]):
            return str(module)
    return None


def _find_spared_rows(graph: ChannelGraph, group: ChannelGroup) -> Rows:
    """The outputs that carry a channel of a group, and need not be 0 for the channel to be silent."""
    # A product is 0 where either of its factors is, so it is enough to silence one of them:
    #
    # 1. A dimension of queries and keys without its keys.  Where queries, keys and values are split from one tensor,
    #    the dimension is one of the values, too, which are silenced with the queries.
    # 2. A head with its values alone: what its queries and keys do is then read by nobody.
    # 3. That holds only where nothing else uses what is spared.
    products = [product for product in graph.products if np.isin(group.channels, product.inputs).any()]
    if products:
        return _find_key_rows(products[0]) if len(products) == 1 else {}
    return _find_rows_beside_values(graph, group)


def _find_key_rows(product: Product) -> Rows:
    queries, keys = (_find_rows(factor) for factor in product.node.args[:2])
    return {} if queries is None or keys is None else _flag_rows(keys)


def _find_rows_beside_values(graph: ChannelGraph, group: ChannelGroup) -> Rows:
    """The outputs of a head that are not its values; none where somebody else reads what they become."""
    # 1. Attention is one operator of queries, keys and values, or two products: queries by keys, and scores by values.
    # 2. Queries, keys, and all that is made of them must go into the attention alone.
    # 3. All that writes the head is spared but the rows of its values, which one layer may write beside the others.
    attentions = [node for node in graph.value_channels if _has_heads(graph, node, group)]
    if len(attentions) == 1 and attentions[0].target == ATTENTION:  # 1
        others, values = attentions[0].args[:2], attentions[0].args[2]
    elif len(attentions) == 2 and all(node.target != ATTENTION for node in attentions):
        others, values = attentions[0].args[:2], attentions[1].args[1]
    else:
        return {}
    written = _find_rows(values)
    behind_others = set().union(*(_find_behind(factor) for factor in others))
    expected = behind_others | _find_behind(values) | set(attentions)
    if len(attentions) == 2:
        expected |= _find_behind(attentions[1].args[0])  # the scores on their way from the one product to the other
    if written is None or not all(expected.issuperset(node.users) for node in behind_others):  # 2
        return {}
    spared = {}  # 3
    for writer in group.writers:
        flags = np.ones(_written_channels(graph, writer).size, np.bool_)
        if writer.node == written.writer:
            flags[written.rows] = False
        spared[writer.node] = flags
    return spared if written.writer in spared else {}


def _find_behind(value: Any) -> set[Node]:
    """A value and all that it is made of, back to the operators that write with a weight."""
    behind: set[Node] = set()
    pending = [value]
    while pending:
        node = pending.pop()
        if node in behind or node.op != "call_function":
            continue
        behind.add(node)
        if node.target not in WRITERS_ALONG:
            pending += node.all_input_nodes
    return behind


def _has_heads(graph: ChannelGraph, node: Node, group: ChannelGroup) -> bool:
    """Whether a product of two computed tensors has the channels of a group along a batch dimension."""
    if node.target not in (ATTENTION, aten.matmul.default, aten.bmm.default):
        return False
    return any(
        channels is not None and np.isin(group.channels, channels).all() for channels in graph.value_channels[node][:-2]
    )


def _find_rows(factor: Any) -> WrittenRows | None:
    if not isinstance(factor, Node):
        return None
    return find_rows_behind(factor, MOVES | (SCALES if _is_scaled_by_numbers(factor) else set()))


def _is_scaled_by_numbers(node: Any) -> bool:
    """Whether all factors on the way back from a value are numbers of the code."""
    while isinstance(node, Node) and node.target in MOVES | SCALES:
        if node.target in SCALES and isinstance(node.args[1], Node):
            return False
        node = node.args[0]
    return True


def _flag_rows(written: WrittenRows) -> Rows:
    writer = written.writer
    flags = np.zeros(writer.meta["val"].shape[WRITERS_ALONG[writer.target]], np.bool_)
    flags[written.rows] = True
    return {writer: flags}
