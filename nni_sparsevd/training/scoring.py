"""Accuracy and loss of a network on a split."""

import copy
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..convert import bake_
from ..data import DataSets, Split
from ..masks import Masks


@dataclass(frozen=True)
class Score:
    """Accuracy in [0, 1] and mean cross-entropy in nats."""

    accuracy: float
    loss: float
    images: int

    def to_dict(self) -> dict[str, float]:
        """JSON-able, with the error in percent."""
        return {**asdict(self), "error_percent": round(100 * (1 - self.accuracy), 4)}


def evaluate(model: nn.Module, data: DataSets, split: Split, batch_size: int = 500) -> Score:
    """Score `model` in evaluation mode; its mode is left as it was."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    correct, loss = 0, 0.0
    with torch.inference_mode():
        for images, labels in data.batches(split, batch_size):
            logits = model(images.to(device)).float()
            labels = labels.to(device)
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            correct += int((logits.argmax(1) == labels).sum())
    model.train(training)
    count = max(len(split), 1)
    return Score(correct / count, loss / count, len(split))


def evaluate_baked(model: nn.Module, masks: Masks, data: DataSets, split: Split) -> Score:
    """Score what would ship: an ordinary copy with the masks multiplied in."""
    return evaluate(bake_(copy.deepcopy(model), masks, allow_empty=True), data, split)
