"""timm's architecture modules, and the smallest network of each."""

import fnmatch
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import timm
import torch
from torch import nn

from ...errors import SettingError
from ...measure import count_parameters

SIZES = (64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
"""Sides of the images that are tried, from the smallest, with networks that take any size."""


@dataclass(frozen=True)
class Member:
    """The smallest network of a family, and the inputs to try with it."""

    family: str
    """Name of the architecture module of timm."""
    model: str
    """Name of the network in timm."""
    channels: int
    """Channels of its input."""
    sizes: tuple[int, ...]
    """Sides of the images to try, from the smallest; a single one where the network takes no other."""
    layer_norms: bool = False
    """Whether the network has layer norms."""


def list_families(pattern: str = "*") -> list[str]:
    """Names of timm's modules that register networks.

    Args:
        pattern: A shell pattern, or several with commas.

    Returns:
        The names that match, in timm's order.

    Raises:
        SettingError: No module matches.
    """
    # A user's own code may have registered networks under other modules; `find_spec` knows timm's.
    families = [name for name in timm.list_modules() if find_spec(f"timm.models.{name}")]
    matching = match_names(families, pattern)
    if not matching:
        raise SettingError(f"families: no architecture module of timm matches {pattern!r}")
    return matching


def match_names(names: Iterable[str], pattern: str) -> list[str]:
    """The names that match a shell pattern, or one of several with commas, in their order."""
    patterns = [part.strip() for part in pattern.split(",")]
    matching = []
    for name in names:
        if any(fnmatch.fnmatch(name, part) for part in patterns):
            matching.append(name)
    return matching


def find_smallest(family: str) -> Member:
    """The network of a family with the fewest parameters, counted without making their values."""
    _, member = min(_count_members(family), key=lambda counted: counted[0])
    return member


def _count_members(family: str) -> Iterator[tuple[int, Member]]:
    """The number of parameters of each network of a family, and the network."""
    for name in timm.list_models(module=family):
        with torch.device("meta"):  # no memory for weights: the largest networks of timm have billions
            model = timm.create_model(name)
        config = timm.get_pretrained_cfg(name)
        channels, *_, side = config.input_size if config else (3, 224, 224)
        sizes = (side,) if config and config.fixed_input_size else SIZES
        has_layer_norms = any(isinstance(module, nn.LayerNorm) for module in model.modules())
        yield count_parameters(model), Member(family, name, channels, sizes, has_layer_norms)
