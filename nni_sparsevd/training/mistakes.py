"""The photos that a smaller network gets wrong and the dense one right, and the other way round."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..data import DataSets
from ..files import save_tensors
from .scoring import Answers

SHOWN = 12
"""Photos that are kept to be looked at."""


@dataclass(frozen=True)
class Mistakes:
    """Where two networks differ on the test images.

    Attributes:
        lost: Images that the dense network gets right and the smaller one wrong.
        gained: The other way round.
        images: Some of those that were lost, the surest of its mistakes first; uint8, shape (up to `SHOWN`, channels,
            height, width), as the networks see them before normalization.
        labels: Their classes, shape (shown,).
        answers: What the smaller network takes them for, shape (shown,).
    """

    lost: int
    gained: int
    images: Tensor
    labels: Tensor
    answers: Tensor

    def save(self, path: Path) -> None:
        """Write the images, their classes and the answers to a safetensors file."""
        save_tensors({"images": self.images, "labels": self.labels, "answers": self.answers}, path)


def find_mistakes(dense: Answers, small: Answers, data: DataSets) -> Mistakes:
    """Compare what two networks say of the test images.

    Args:
        dense: What the network before anything was removed says of the test images.
        small: What the smaller one says of them.
        data: Its test images are compared.

    Returns:
        How many images the smaller network lost and gained, and some of those that it lost.
    """
    labels = data.test.labels
    dense_is_right, small_is_right = dense.classes == labels, small.classes == labels
    lost = (dense_is_right & ~small_is_right).nonzero().flatten()
    shown = lost[small.probabilities[lost].argsort(descending=True, stable=True)][:SHOWN]
    images = data.test.read(shown.tolist()) if len(shown) else torch.empty(0, *data.preprocessing.input_size)
    if images.is_floating_point():
        images = images.mul(255).round().to(torch.uint8)
    gained = int((small_is_right & ~dense_is_right).sum())
    return Mistakes(len(lost), gained, images, labels[shown], small.classes[shown])
