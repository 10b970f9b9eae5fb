"""Pictures of the method itself: prior and posteriors of a trained network, and the KL with its approximation."""

from pathlib import Path

import numpy as np
import torch

from ...files import load_tensors
from ...posterior import DEFAULT_THRESHOLD, Prior, kl_elements, log_alpha
from ...report.pictures import BLUE, GRAY, ORANGE, styled_axes


def posterior(run: Path, path: Path) -> None:
    """The prior 1/|w|, and the posteriors of a kept and of a removed weight of the first layer of a finished run.

    The removed weight is the median of its kind by |theta|, the kept one stronger than nine tenths of its kind.  Every
    curve is scaled to a height of 1.
    """
    tensors = load_tensors(run / "posterior.safetensors")[0]
    name = next(key.removesuffix(".log_sigma2") for key in tensors if key.endswith(".log_sigma2"))
    theta, log_sigma2 = tensors[f"{name}.weight"].flatten(), tensors[f"{name}.log_sigma2"].flatten()
    removed = log_alpha(theta, log_sigma2) >= DEFAULT_THRESHOLD
    reach = 1.6 * float(theta[~removed].abs().quantile(0.9)) if (~removed).any() else 0.5
    w = np.linspace(-reach, reach, 2001)
    with styled_axes(path, 7.0, 3.0) as axes:
        axes.plot(w, np.minimum(0.02 * reach / np.maximum(np.abs(w), 1e-9), 1), "--", color=GRAY, label="prior ∝ 1/|w|")
        for kind, chosen, rank, colour in (("kept", ~removed, 0.9, BLUE), ("removed", removed, 0.5, ORANGE)):
            if not chosen.any():
                continue
            at = int(theta[chosen].abs().argsort()[int(rank * int(chosen.sum()))])
            mean, deviation = float(theta[chosen][at]), float((0.5 * log_sigma2[chosen][at]).exp())
            label = f"{kind}: θ = {mean:.3g}, σ = {deviation:.2g}, log α = {2 * np.log(deviation / abs(mean)):.1f}"
            axes.plot(w, np.exp(-0.5 * ((w - mean) / deviation) ** 2), color=colour, label=label)
        axes.set_xlabel(f"weight of {name}")
        axes.set_yticks([])
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.32))


def kl(path: Path) -> None:
    """The KL of one weight over log alpha: exact, the paper's approximation (eq. 14), and empirical Bayes."""
    ratio = torch.linspace(-8, 8, 401, dtype=torch.float64)
    kinds: tuple[tuple[Prior, str, str], ...] = (
        ("log_uniform_exact", "exact", "-"),
        ("log_uniform", "approximation, eq. 14", "--"),
        ("ard", "empirical Bayes", ":"),
    )
    with styled_axes(path, 7.0, 3.0) as axes:
        for (prior, label, line), colour in zip(kinds, (BLUE, ORANGE, GRAY), strict=True):
            axes.plot(ratio, kl_elements(ratio, prior), line, color=colour, label=label)
        axes.axvline(DEFAULT_THRESHOLD, color="black", linestyle="--", linewidth=1)
        axes.annotate(" removed", (DEFAULT_THRESHOLD, 4), fontsize=9)
        axes.set_xlabel("log α")
        axes.set_ylabel("KL of one weight, nats")
        axes.legend(frameon=False)
