"""timm's architecture modules, and of each the smallest network."""

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import timm
import torch
from torch import nn

from ...errors import SettingError

SIZES = (64, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512)
"""Sides of images that are tried, from the smallest, for networks that take any."""


@dataclass(frozen=True)
class Member:
    """The smallest network of a family, and the sides of images to try with it."""

    family: str
    model: str
    channels: int
    sizes: tuple[int, ...]
    layer_norms: bool = False
    """Whether it has any."""


def list_families(pattern: str = "*") -> list[str]:
    """Names of timm's modules that register networks; `pattern` is a shell pattern, or several with commas.

    Raises `SettingError` when none matches.
    """
    patterns = pattern.split(",")
    own = [name for name in timm.list_modules() if find_spec(f"timm.models.{name}")]  # others may have been added
    found = [name for name in own if any(fnmatch.fnmatch(name, one.strip()) for one in patterns)]
    if not found:
        raise SettingError(f"families: no architecture module of timm matches {pattern!r}")
    return found


def smallest(family: str) -> Member:
    """The member with the fewest parameters, counted without making any."""
    return min(_members(family), key=lambda found: found[0])[1]


def _members(family: str) -> Iterator[tuple[int, Member]]:
    for name in timm.list_models(module=family):
        with torch.device("meta"):
            model = timm.create_model(name)
        entry = timm.get_pretrained_cfg(name)
        channels, *_, side = entry.input_size if entry else (3, 224, 224)
        sizes = (side,) if entry and entry.fixed_input_size else SIZES
        norms = any(isinstance(module, nn.LayerNorm) for module in model.modules())
        yield sum(parameter.numel() for parameter in model.parameters()), Member(family, name, channels, sizes, norms)
