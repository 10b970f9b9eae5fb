"""How well predictions know their own errors: one network against many drawn from the posterior, on harder images."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as transform
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from ...predictive import predict
from .finished import Finished

IMAGES = 2000
"""Test images; each is seen in every condition."""
SAMPLES = 20
BINS = 15

CONDITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda images: images,
    "turned by 30°": lambda images: transform.rotate(images, 30.0),
    "turned by 60°": lambda images: transform.rotate(images, 60.0),
    "shifted by 4 pixels": lambda images: transform.affine(images, 0.0, [4, 4], 1.0, [0.0, 0.0]),
    "blurred": lambda images: transform.gaussian_blur(images, [7, 7], [1.5, 1.5]),
    "noise of 0.4": lambda images: transform.gaussian_noise(images, sigma=0.4),
    "inverted": transform.invert,
}
"""What is done to images in [0, 1]."""


def measure_calibration(done: Finished) -> list[dict[str, Any]]:
    """Score four predictors of a finished run under every condition.

    dense: the network before Sparse VD; shrunk: the one that ships; posterior and pruned posterior: the mean over
    networks drawn from each.
    """
    data = done.data
    predictors: dict[str, Callable[[Tensor], Tensor]] = {
        "dense": lambda inputs: _alone(done.dense, inputs),
        "shrunk": lambda inputs: _alone(done.small, inputs),
        "posterior": lambda inputs: predict(done.posterior, inputs, SAMPLES).probabilities,
        "pruned posterior": lambda inputs: predict(done.posterior, inputs, SAMPLES, done.masks).probabilities,
    }
    torch.manual_seed(done.recipe.seed)
    images, labels = data.test.images[:IMAGES].float() / 255, data.test.labels[:IMAGES]
    rows = []
    for condition, change in CONDITIONS.items():
        inputs = data.normalize(change(images))
        for name, predictor in predictors.items():
            rows.append({"condition": condition, "predictor": name, **scores(predictor(inputs), labels)})
    return rows


def _alone(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.eval()(inputs).double().softmax(-1)  # type: ignore[no-any-return]


def calibration_table(runs: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table for the runs of one variant: error, NLL and ECE of each predictor, means over seeds."""
    rows = [row for run in runs for row in run["calibration"]]
    predictors = list(dict.fromkeys(row["predictor"] for row in rows))
    lines = [f"| images | {' | '.join(predictors)} |", "|---|" + "--:|" * len(predictors)]
    for condition in dict.fromkeys(row["condition"] for row in rows):
        cells = []
        for predictor in predictors:
            same = [row for row in rows if (row["condition"], row["predictor"]) == (condition, predictor)]
            error, nll, ece = (statistics.mean(row[key] for row in same) for key in ("error", "nll", "ece"))
            cells.append(f"{error:.1f} · {nll:.3f} · {ece:.1f}")
        lines.append(f"| {condition} | {' | '.join(cells)} |")
    return lines


def scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Error in percent, negative log-likelihood and mean entropy in nats, expected calibration error in percent."""
    error = multiclass_calibration_error(probabilities.float(), labels, probabilities.shape[1], BINS, "l1")
    return {
        "error": 100 * float((probabilities.argmax(1) != labels).double().mean()),
        "nll": float(F.nll_loss(probabilities.clamp_min(1e-12).log(), labels)),
        "ece": 100 * float(error),
        "entropy": float(torch.special.entr(probabilities).sum(1).mean()),
    }
