"""A plan: which channels are removed and what changes with them, as a value that can be printed, saved and applied."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ..errors import FileFormatError
from ..files import read_json, write_bytes
from ..graph import Axis
from .plan_file import PlanDocument, decode_plan, encode_plan
from .plan_parts import GroupPlan, Merge, QueryScaling, SizeChange


@dataclass(frozen=True)
class NormMemory:
    """What a norm has to remember when it loses channels."""

    channel_dim: int
    """The dimension of the norm's input that holds the channels: -1 where they are last."""
    removed: Tensor  # shape: (removed channels,), float64
    """The constants that the removed channels carried."""
    indices: tuple[int, ...] | None = None
    """The places of the removed channels; None for a layer norm, which needs their sums alone."""
    channels: int = 0
    """How many channels there were; 0 for a layer norm."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What is removed from a network, what is kept, and why: the result of `make_plan`, `shrink` and `shrink_`.

    A plan is complete.  `apply_plan_` makes from it, and from the network that it was made for, the network that
    `shrink` returns, bit for bit, also in another process.  Two plans are equal when their files are.

    Example:
        ```python
        import torch
        from torch import nn

        import nni_sparsevd as svd
        from nni_sparsevd.shrinking import apply_plan_

        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
        nn.init.zeros_(model[2].weight[:, :3].detach())  # nobody reads three of the six neurons
        plan = svd.make_plan(model, torch.zeros(1, 4))
        print(plan)  # a row for each channel group: channels, removed, left, reason

        plan.save("plan.json")
        small = apply_plan_(model, svd.Plan.load("plan.json"))
        assert small[0].out_features == 3
        ```
    """

    groups: tuple[GroupPlan, ...]
    """One account for each channel group, in the order in which the network writes them."""
    shapes: dict[str, tuple[int, ...]]
    """Name of each tensor of the network's state dict -> its shape before anything is removed."""
    cuts: dict[Axis, tuple[int, ...]]
    """Parameter or buffer and its dimension -> the indices that are removed, ascending."""
    folds: dict[str, Tensor]
    """Bias -> what the removed inputs added to its outputs; shape (outputs before the cut,), float64."""
    merges: dict[Axis, tuple[Merge, ...]]
    """Weight and its input dimension -> channels that take over what others carried, before these are cut."""
    sizes: tuple[SizeChange, ...]
    """Attributes of modules that say how many channels there are."""
    scales: tuple[QueryScaling, ...]
    """Attentions that lose dimensions."""
    norms: dict[str, NormMemory]
    """Norms that lose channels, and have to remember them."""

    @property
    def removed(self) -> int:
        """Channels removed, over all groups."""
        return sum(group.removed for group in self.groups)

    def to_rows(self) -> list[dict[str, object]]:
        """One row that JSON can hold for each channel group: name, modules, channels, removed, dead, reason."""
        return [asdict(group) for group in self.groups]

    def to_json(self) -> str:
        """The whole plan as JSON text, the content of the file that `save` writes.

        Returns:
            The text; docs/files.md describes its form.  Numbers are written such that they are read back bit for bit.

        Raises:
            FileFormatError: A constant is infinite or NaN, which JSON cannot hold.
        """
        return encode_plan(self._to_document())

    def save(self, path: Path | str) -> None:
        """Write the plan to a JSON file, whole or not at all.

        Args:
            path: The file to write.

        Raises:
            FileFormatError: The file cannot be written, or a constant is infinite or NaN.
        """
        write_bytes(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a plan that `save` has written.

        Args:
            path: The file to read.

        Returns:
            A plan that equals the one that was saved.

        Raises:
            FileFormatError: The file is missing, is no plan, was written in another version of the format, or was
                altered since.
        """
        return cls._from_document(decode_plan(read_json(Path(path)), str(path)), str(path))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return self._to_document() == other._to_document()

    def __str__(self) -> str:
        width = max((len(group.name) for group in self.groups), default=5)
        lines = [f"{'group':{width}}  channels  removed  left  reason"]
        for group in self.groups:
            left = group.channels - group.removed
            lines.append(f"{group.name:{width}}  {group.channels:8}  {group.removed:7}  {left:4}  {group.reason}")
        return "\n".join(lines)

    def _to_document(self) -> dict[str, Any]:
        """All fields as values that JSON can hold."""
        merges = {axis: [asdict(merge) for merge in merges] for axis, merges in self.merges.items()}
        norms = {}
        for name, memory in self.norms.items():
            norms[name] = {"channel_dim": memory.channel_dim, "removed": memory.removed.tolist()}
            if memory.indices is not None:
                norms[name] |= {"indices": memory.indices, "channels": memory.channels}
        return {
            "groups": self.to_rows(),
            "shapes": self.shapes,
            "cuts": _join_axes(self.cuts),
            "folds": {bias: added.tolist() for bias, added in self.folds.items()},
            "merges": _join_axes(merges),
            "sizes": [asdict(change) for change in self.sizes],
            "scales": [asdict(scaling) for scaling in self.scales],
            "norms": norms,
        }

    @classmethod
    def _from_document(cls, document: PlanDocument, source: str) -> Self:
        norms = {}
        for name, norm in document.norms.items():
            norms[name] = NormMemory(norm.channel_dim, _as_float64(norm.removed), norm.indices, norm.channels)
        return cls(
            groups=document.groups,
            shapes=document.shapes,
            cuts=_split_axes(document.cuts, source),
            folds={bias: _as_float64(added) for bias, added in document.folds.items()},
            merges=_split_axes(document.merges, source),
            sizes=document.sizes,
            scales=document.scales,
            norms=norms,
        )


def _as_float64(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _join_axes(table: dict[Axis, Any]) -> dict[str, Any]:
    """JSON has words as keys: ("conv.weight", 0) becomes "conv.weight:0"."""
    return {f"{name}:{dim}": value for (name, dim), value in table.items()}


def _split_axes(table: dict[str, Any], source: str) -> dict[Axis, Any]:
    axes = {}
    for key, value in table.items():
        name, _, dim = key.rpartition(":")
        if not (name and dim.isdecimal()):
            raise FileFormatError(f"{source}: {key!r} is no axis; it should be TENSOR:DIMENSION")
        axes[name, int(dim)] = value
    return axes
