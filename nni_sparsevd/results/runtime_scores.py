"""How files do on test photos in their own runtimes."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..data import DataSets

AT_ONCE = 32
"""Test photos that are decoded at once."""


@dataclass(frozen=True)
class RuntimeScore:
    """What a file says of test photos, in its runtime."""

    images: int
    accuracy: float
    """Part of the photos whose class it names."""
    agreement: float
    """Part of the photos to which it gives the class that its network gives in PyTorch, in float32."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Candidate:
    """A network that runs in PyTorch or in another runtime."""

    runs: nn.Module
    network: str
    """Which network it is, by the name among the references."""
    single: bool
    """Whether it takes one photo at a time."""


def score_candidates(
    candidates: dict[str, Candidate], references: dict[str, nn.Module], data: DataSets
) -> dict[str, RuntimeScore]:
    """Score files on all test photos; each photo is decoded once.

    Args:
        candidates: What is scored, by any name.
        references: The networks in PyTorch, in evaluation mode.
        data: The photos.

    Returns:
        The score of each candidate.
    """
    correct, same = dict.fromkeys(candidates, 0), dict.fromkeys(candidates, 0)
    with torch.inference_mode():
        for images, labels in data.batches(data.test, AT_ONCE):
            expected = {name: network(images).argmax(1) for name, network in references.items()}
            for name, candidate in candidates.items():
                answers = _answer(candidate, images)
                correct[name] += int((answers == labels).sum())
                same[name] += int((answers == expected[candidate.network]).sum())
    count = len(data.test)
    return {name: RuntimeScore(count, correct[name] / count, same[name] / count) for name in candidates}


def _answer(candidate: Candidate, images: Tensor) -> Tensor:
    """The classes that it gives, shape (count,)."""
    batches = images.split(1) if candidate.single else (images,)
    return torch.cat([candidate.runs(batch).argmax(1) for batch in batches])
