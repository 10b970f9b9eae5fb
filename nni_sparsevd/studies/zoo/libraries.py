"""The libraries whose networks the zoo tries."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import SettingError, TraceError
from ...graph import as_arguments
from ...testing import randomize_, settle_
from . import torchvision_networks, transformers_networks
from .families import find_smallest, list_families, match_names
from .trials import MASK_KINDS, Row, run_trial, shrink_and_compare

Trial = Callable[[str, int], Row]
"""A trial of one network: called with the kind of masks and the seed."""


@dataclass(frozen=True)
class Library:
    """Where networks come from."""

    list_names: Callable[[str], list[str]]
    """Names that match a shell pattern, or several with commas."""
    find: Callable[[str], tuple[str, bool, Trial]]
    """For a name: what the network is, whether it has norms over channels, and the trial of it."""


def mask_kinds_for(has_norms: bool) -> list[str]:
    """The kinds of masks that say something about a network."""
    return [kind for kind in MASK_KINDS if kind != "remember" or has_norms]


def find_library(name: str) -> Library:
    """A library by its name; raises `SettingError` where the zoo has no such library."""
    if name not in LIBRARIES:
        raise SettingError(f"library: one of {', '.join(LIBRARIES)}, found {name!r}")
    return LIBRARIES[name]


def _match_names(names: Iterable[str], pattern: str, library: str) -> list[str]:
    matching = match_names(names, pattern)
    if not matching:
        raise SettingError(f"families: no network of {library} in the zoo matches {pattern!r}")
    return matching


def _find_timm(family: str) -> tuple[str, bool, Trial]:
    member = find_smallest(family)
    sizes = member.sizes

    def run(mask_kind: str, seed: int) -> Row:
        nonlocal sizes
        row = run_trial(replace(member, sizes=sizes), mask_kind, seed)
        if row.input_size:  # the size depends on the weights alone, and is searched once
            sizes = (row.input_size,)
        return row

    return member.model, member.layer_norms, run


def _find_listed(networks: Any, name: str) -> tuple[str, bool, Trial]:
    """A network of one of the lists: a module with `ENTRIES` and `make_network`."""
    entry = networks.ENTRIES[name]
    model, _ = networks.make_network(name)
    has_norms = any(_mixes_channels(module) for module in model.modules())

    def run(mask_kind: str, seed: int) -> Row:
        torch.manual_seed(seed)
        model, inputs = networks.make_network(name)
        compare = networks.largest_box_difference if entry.kind == "detection with boxes" else None
        model = randomize_(model, seed).eval()
        example = as_arguments(inputs)
        if entry.runs_in_64:
            model, example = model.double(), example.map_tensors(_widen)
        settle_(model, example, seed)
        row = Row(name, entry.kind, mask_kind, "")
        modes = (False,) if entry.runs_in_64 else ()
        try:
            return shrink_and_compare(row, model, example, seed, modes, compare)
        except TraceError as error:
            return replace(row, verdict=f"not traced: {error}")

    return entry.kind, has_norms, run


def _mixes_channels(module: nn.Module) -> bool:
    """Whether a module is a norm over channels: of any library's own classes, and no batch norm."""
    name = type(module).__name__
    return "Norm" in name and "BatchNorm" not in name


def _widen(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


LIBRARIES = {
    "timm": Library(list_families, _find_timm),
    "torchvision": Library(
        lambda pattern: _match_names(torchvision_networks.ENTRIES, pattern, "torchvision"),
        lambda name: _find_listed(torchvision_networks, name),
    ),
    "transformers": Library(
        lambda pattern: _match_names(transformers_networks.ENTRIES, pattern, "transformers"),
        lambda name: _find_listed(transformers_networks, name),
    ),
}
