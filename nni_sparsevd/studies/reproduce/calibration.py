"""Calibration on harder and harder images: one network against the mean of many drawn from the posterior."""

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as transform
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_calibration_error

from ...predictive import predict
from ...report.tables import format_row
from .finished import FinishedRun

IMAGES = 2000
"""Number of test images; each is seen in every condition."""
SAMPLES = 20
"""Networks that are drawn from a posterior."""
BINS = 15
"""Bins of the expected calibration error."""

CONDITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda images: images,
    "turned by 30°": lambda images: transform.rotate(images, 30.0),
    "turned by 60°": lambda images: transform.rotate(images, 60.0),
    "shifted by 4 pixels": lambda images: transform.affine(images, 0.0, [4, 4], 1.0, [0.0, 0.0]),
    "blurred": lambda images: transform.gaussian_blur(images, [7, 7], [1.5, 1.5]),
    "noise of 0.4": lambda images: transform.gaussian_noise(images, sigma=0.4),
    "inverted": transform.invert,
}
"""Name of a condition -> what it does to images in [0, 1]."""


def measure_calibration(run: FinishedRun) -> list[dict[str, Any]]:
    """Score four predictors of a finished run under every condition.

    The predictors are "dense", the network before Sparse VD; "shrunk", the network that ships; "posterior" and "pruned
    posterior", the mean over networks drawn from each.
    """
    predictors: dict[str, Callable[[Tensor], Tensor]] = {
        "dense": lambda inputs: _predict_once(run.dense, inputs),
        "shrunk": lambda inputs: _predict_once(run.small, inputs),
        "posterior": lambda inputs: predict(run.posterior, inputs, SAMPLES).probabilities,
        "pruned posterior": lambda inputs: predict(run.posterior, inputs, SAMPLES, run.masks).probabilities,
    }
    torch.manual_seed(run.recipe.seed)  # of the noise on the images and of the networks that are drawn
    images, labels = run.data.test.images[:IMAGES].float() / 255, run.data.test.labels[:IMAGES]
    rows = []
    for condition, change in CONDITIONS.items():
        inputs = run.data.normalize(change(images))
        for name, predictor in predictors.items():
            scores = score_predictions(predictor(inputs), labels)
            rows.append({"condition": condition, "predictor": name, **scores})
    return rows


def _predict_once(model: nn.Module, inputs: Tensor) -> Tensor:
    """Probabilities of the classes, (images, classes), in float64."""
    with torch.inference_mode():
        probabilities: Tensor = model.eval()(inputs).double().softmax(-1)
    return probabilities


def format_calibration(runs: list[dict[str, Any]]) -> list[str]:
    """Lines of a Markdown table of one variant: error, NLL and ECE of each predictor, means over seeds."""
    # condition -> predictor -> the rows of all seeds
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in runs:
        for row in run["calibration"]:
            by_predictor = groups.setdefault(row["condition"], {})
            by_predictor.setdefault(row["predictor"], []).append(row)
    predictors = list(dict.fromkeys(name for by_predictor in groups.values() for name in by_predictor))
    lines = [format_row(["images", *predictors]), "|---|" + "--:|" * len(predictors)]
    for condition, by_predictor in groups.items():
        lines.append(format_row([condition, *(_format_means(by_predictor[predictor]) for predictor in predictors)]))
    return lines


def _format_means(rows: list[dict[str, Any]]) -> str:
    """Error in percent, NLL in nats and ECE in percent, each the mean of the rows."""
    error = statistics.mean(row["error"] for row in rows)
    nll = statistics.mean(row["nll"] for row in rows)
    ece = statistics.mean(row["ece"] for row in rows)
    return f"{error:.1f} · {nll:.3f} · {ece:.1f}"


def score_predictions(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Score predicted probabilities.

    Args:
        probabilities: Of the classes, (images, classes), float64.
        labels: The right classes, (images,).

    Returns:
        "error", in percent; "nll", the negative log-likelihood, and "entropy", its mean, in nats; "ece", the expected
        calibration error, in percent.
    """
    calibration_error = multiclass_calibration_error(probabilities.float(), labels, probabilities.shape[1], BINS, "l1")
    # A confident mistake may have a probability of 0 in floating point; 1e-12 keeps its likelihood finite.
    return {
        "error": 100 * float((probabilities.argmax(1) != labels).double().mean()),
        "nll": float(F.nll_loss(probabilities.clamp_min(1e-12).log(), labels)),
        "ece": 100 * float(calibration_error),
        "entropy": float(torch.special.entr(probabilities).sum(1).mean()),
    }
