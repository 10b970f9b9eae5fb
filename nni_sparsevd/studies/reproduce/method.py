"""Pictures of the method itself: prior and posteriors of a trained network, and the KL with its approximation."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from ...files import load_tensors
from ...posterior import DEFAULT_THRESHOLD, Prior, kl_elements, log_alpha
from ...report.pictures import BLUE, GRAY, ORANGE, styled_axes


def draw_posteriors(run: Path, path: Path) -> None:
    """Draw the prior 1/|w|, and the posteriors of a kept and of a removed weight of a finished run's first layer.

    The removed weight is the median of the removed ones by |theta|; the kept weight is stronger than nine tenths of the
    kept ones.  Every curve is scaled to a height of 1.

    Args:
        run: Folder of the run.
        path: Where the picture goes.
    """
    tensors = load_tensors(run / "posterior.safetensors")[0]
    name = next(key.removesuffix(".log_sigma2") for key in tensors if key.endswith(".log_sigma2"))
    theta, log_sigma2 = tensors[f"{name}.weight"].flatten(), tensors[f"{name}.log_sigma2"].flatten()
    removed = log_alpha(theta, log_sigma2) >= DEFAULT_THRESHOLD
    kept = ~removed
    reach = 1.6 * float(theta[kept].abs().quantile(0.9)) if kept.any() else 0.5
    w = np.linspace(-reach, reach, 2001)
    with styled_axes(path, 7.0, 3.0) as axes:
        prior = np.minimum(0.02 * reach / np.maximum(np.abs(w), 1e-9), 1)
        axes.plot(w, prior, "--", color=GRAY, label="prior ∝ 1/|w|")
        if kept.any():
            _draw_posterior(axes, w, theta[kept], log_sigma2[kept], 0.9, "kept", BLUE)
        if removed.any():
            _draw_posterior(axes, w, theta[removed], log_sigma2[removed], 0.5, "removed", ORANGE)
        axes.set_xlabel(f"weight of {name}")
        axes.set_yticks([])
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.32))


def _draw_posterior(
    axes: Axes, w: np.ndarray, theta: Tensor, log_sigma2: Tensor, quantile: float, kind: str, color: str
) -> None:
    """Draw the posterior of the weight at a quantile of |theta|."""
    index = int(theta.abs().argsort()[int(quantile * len(theta))])
    mean, deviation = float(theta[index]), float((0.5 * log_sigma2[index]).exp())
    own_log_alpha = 2 * np.log(deviation / abs(mean))
    label = f"{kind}: θ = {mean:.3g}, σ = {deviation:.2g}, log α = {own_log_alpha:.1f}"
    axes.plot(w, np.exp(-0.5 * ((w - mean) / deviation) ** 2), color=color, label=label)


def draw_kl(path: Path) -> None:
    """Draw the KL of one weight over log alpha: exact, the paper's approximation (eq. 14), and empirical Bayes.

    Args:
        path: Where the picture goes.
    """
    ratio = torch.linspace(-8, 8, 401, dtype=torch.float64)
    curves: tuple[tuple[Prior, str, str, str], ...] = (
        ("log_uniform_exact", "exact", "-", BLUE),
        ("log_uniform", "approximation, eq. 14", "--", ORANGE),
        ("ard", "empirical Bayes", ":", GRAY),
    )
    with styled_axes(path, 7.0, 3.0) as axes:
        for prior, label, line, color in curves:
            axes.plot(ratio, kl_elements(ratio, prior), line, color=color, label=label)
        axes.axvline(DEFAULT_THRESHOLD, color="black", linestyle="--", linewidth=1)
        axes.annotate(" removed", (DEFAULT_THRESHOLD, 4), fontsize=9)
        axes.set_xlabel("log α")
        axes.set_ylabel("KL of one weight, nats")
        axes.legend(frameon=False)
