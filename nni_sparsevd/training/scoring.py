"""Accuracy and loss of a network on a split of the data."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..convert import bake_
from ..data import DataSets, Split
from ..graph import copy_module, evaluation_mode
from ..masks import Masks

VALUES = 1 << 23
"""Values of the images of one forward pass: 55 images of 224 pixels."""


@dataclass(frozen=True)
class Score:
    """Accuracy in [0, 1] and mean cross-entropy in nats, over `images` images."""

    accuracy: float
    loss: float
    images: int

    def to_dict(self) -> dict[str, float]:
        """The score as a JSON object, with the error in percent besides."""
        return {**asdict(self), "error_percent": round(100 * (1 - self.accuracy), 4)}


@dataclass(frozen=True)
class Answers:
    """What a network says of the images of a split, in their order."""

    score: Score
    classes: Tensor
    """The class of each image, int64, shape (images,)."""
    probabilities: Tensor
    """The probability that the network gives it, float32, shape (images,)."""


def evaluate(model: nn.Module, data: DataSets, split: Split, batch_size: int | None = None) -> Score:
    """Score a network in evaluation mode; its own mode is left as it was.

    Args:
        model: A network of the data's classes, on any device.
        data: Knows how images are normalized.
        split: Which images: `data.holdout`, `data.test`, `data.train`.
        batch_size: Images per forward pass; the score does not depend on it, except for rounding. None: 500, or fewer
            where they are large.

    Returns:
        The score over all images of the split.
    """
    return classify(model, data, split, batch_size).score


def classify(model: nn.Module, data: DataSets, split: Split, batch_size: int | None = None) -> Answers:
    """Score a network as `evaluate` does, and keep what it says of each image.

    Args:
        model: A network of the data's classes, on any device.
        data: Knows how images are normalized.
        split: Which images.
        batch_size: As in `evaluate`.

    Returns:
        The score, and the answers in the order of the images.
    """
    correct, loss = 0, 0.0
    classes, probabilities = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
    for logits, labels in _walk_logits(model, data, split, batch_size):
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        answer = logits.argmax(1)
        correct += int((answer == labels).sum())
        classes.append(answer.cpu())
        probabilities.append(logits.softmax(1).gather(1, answer[:, None])[:, 0].cpu())
    count = max(len(split), 1)
    return Answers(Score(correct / count, loss / count, len(split)), torch.cat(classes), torch.cat(probabilities))


def _walk_logits(
    model: nn.Module, data: DataSets, split: Split, batch_size: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Walk over a split; gives the logits of each batch in float32, and its labels on the same device."""
    batch_size = batch_size or min(500, max(VALUES // math.prod(data.preprocessing.input_size), 1))
    device = next(model.parameters()).device
    with evaluation_mode(model), torch.inference_mode():
        for images, labels in data.batches(split, batch_size):
            yield model(images.to(device)).float(), labels.to(device)


def evaluate_baked(model: nn.Module, masks: Masks, data: DataSets, split: Split) -> Score:
    """Score what would ship: an ordinary copy of a variational network, with the masks multiplied in.

    Args:
        model: The network; it stays as it is.
        masks: What the copy loses; masks that remove a whole layer are accepted.
        data: Knows how images are normalized.
        split: Which images.

    Returns:
        The score over all images of the split.
    """
    return evaluate(bake_(copy_module(model), masks, allow_empty=True), data, split)
