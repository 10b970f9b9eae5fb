"""The change in evidence against numerical integration, and the decisions that are made with it."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib.image
import pytest
import torch
from scipy import integrate, optimize, stats
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd import recipe
from nni_sparsevd.errors import SettingError
from nni_sparsevd.masks import count_weights
from nni_sparsevd.nn import named_posteriors
from nni_sparsevd.posterior import Prior, elements
from nni_sparsevd.posterior.evidence import LOG_RANGE, evidence_gain
from nni_sparsevd.report.decision import find_decision
from nni_sparsevd.report.pictures import draw_threshold_curve
from nni_sparsevd.settings import make_settings
from nni_sparsevd.training import compress

PRIORS: tuple[Prior, ...] = ("log_uniform", "log_uniform_exact")
LOWER, UPPER = -14.0, LOG_RANGE - 14.0
"""The range of log |w|; another one of this length gives the same, as long as the posterior lies inside."""


def find_cut(prior: Prior) -> float:
    """The log alpha at which the gain of a single weight is 0."""
    return float(optimize.brentq(lambda u: evidence_gain(torch.tensor(u).double(), prior).item(), -10, 10))


class Likelihood:
    """The Gaussian likelihood exp(-lambda (w - m)^2 / 2) whose posterior is N(theta, sigma^2), from the derivation."""

    def __init__(self, theta: float, sigma: float) -> None:
        alpha = (sigma / theta) ** 2
        slope = elements.kl_slope(torch.tensor(math.log(alpha), dtype=torch.float64), "log_uniform_exact").item()
        self.precision, self.mean = -2 * slope / sigma**2, theta * (1 + alpha)

    def log(self, w: float) -> float:
        return -0.5 * self.precision * (w - self.mean) ** 2

    def bound(self, theta: float, sigma: float) -> float:
        """The lower bound at N(theta, sigma^2) by quadrature, with the prior's density where the posterior has mass."""

        def integrand(w: float) -> float:
            log_q = -0.5 * ((w - theta) / sigma) ** 2 - math.log(sigma * math.sqrt(2 * math.pi))
            return math.exp(log_q) * (self.log(w) - math.log(2 * LOG_RANGE * abs(w)) - log_q)

        ends = sorted({theta - 10 * sigma, theta, theta + 10 * sigma, 0.0})
        return sum(integrate.quad(integrand, a, b, limit=200, epsabs=1e-10)[0] for a, b in pairwise(ends))

    def log_evidence(self) -> float:
        """Log of the likelihood's mean under the truncated prior, in the variable u = log |w|."""

        def both_signs(u: float) -> float:
            return math.exp(self.log(math.exp(u))) + math.exp(self.log(-math.exp(u)))

        marks = [math.log(abs(self.mean)), math.log(abs(self.mean)) + 1, math.log(abs(self.mean)) - 1]
        return math.log(integrate.quad(both_signs, LOWER, UPPER, points=marks, limit=400)[0] / (2 * LOG_RANGE))


CASES = [(0.5, 0.01), (-0.3, 0.1), (0.02, 0.01), (0.9, 0.5), (0.1, 0.1), (-0.01, 0.03), (0.05, 0.8)]


@pytest.mark.parametrize(("theta", "sigma"), CASES)
def test_the_gain_is_the_likelihood_at_zero_over_the_integrated_bound(theta: float, sigma: float) -> None:
    likelihood = Likelihood(theta, sigma)
    at_rest = likelihood.bound(theta, sigma)
    log_alpha = elements.log_alpha(torch.tensor(theta).double(), torch.tensor(2 * math.log(sigma)).double())
    gain = evidence_gain(log_alpha, "log_uniform_exact").item()
    assert gain == pytest.approx(likelihood.log(0.0) - at_rest, rel=1e-5, abs=1e-4)
    assert evidence_gain(log_alpha).item() == pytest.approx(gain, rel=0.02, abs=0.15)  # the paper's approximate KL
    # The bound is largest there, so the likelihood is the one that has this posterior.
    for factor in (0.9, 1.1):
        assert likelihood.bound(factor * theta, sigma) < at_rest
        assert likelihood.bound(theta, factor * sigma) < at_rest


@pytest.mark.parametrize(("theta", "sigma"), CASES)
def test_the_gain_is_an_upper_bound_that_is_close_for_signals(theta: float, sigma: float) -> None:
    likelihood = Likelihood(theta, sigma)
    exact = likelihood.log(0.0) - likelihood.log_evidence()
    gain = evidence_gain(torch.tensor(2 * math.log(sigma / abs(theta))), "log_uniform_exact").item()
    assert exact <= gain + 1e-4 + 1e-6 * abs(gain)
    if abs(theta) > 5 * sigma:
        assert gain == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(("theta", "sigma"), CASES)
def test_with_a_gaussian_prior_it_is_the_density_ratio_at_zero(theta: float, sigma: float) -> None:
    """Friston and Penny 2011: log q(0) - log p(0). The prior of "ard" has the variance theta^2 + sigma^2."""
    expected = stats.norm.logpdf(0, theta, sigma) - stats.norm.logpdf(0, 0, math.hypot(theta, sigma))
    found = evidence_gain(torch.tensor(2 * math.log(sigma / abs(theta))).double(), "ard")
    assert found.item() == pytest.approx(expected, rel=1e-6) and found < 0


@pytest.mark.parametrize("prior", PRIORS)
def test_the_gain_grows_with_log_alpha_to_that_of_noise(prior: Prior) -> None:
    gain = evidence_gain(torch.linspace(-90, 60, 3001), prior)
    assert gain.isfinite().all() and (gain.diff() > -1e-9).all()
    # noise: log p(0) of a flat likelihood is 0, and the bound is minus the KL, by quadrature of E log |w|
    mean_log = integrate.quad(lambda w: 2 * math.log(w) * stats.norm.pdf(w), 0, 12)[0]
    kl_of_noise = mean_log + math.log(2 * LOG_RANGE) - 0.5 * math.log(2 * math.pi * math.e)
    assert gain[-1].item() == pytest.approx(kl_of_noise, abs=1e-6)
    assert math.exp(-find_cut(prior) / 2) == pytest.approx(1.81, abs=0.01)  # standard deviations from zero


class Net(nn.Module):
    """Two branches that are added, an embedding with a padding row and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 6, padding_idx=2)
        self.left = nn.Linear(6, 8)
        self.right = nn.Linear(6, 8, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens).mean(1)
        return self.head((self.left(x) + self.right(x)).relu())


TOKENS = torch.tensor([[0, 1, 3], [4, 2, 0]])


def trained(spread: float = 2.0, **settings: object) -> nn.Module:
    """Log alpha on both sides of where the evidence decides; channels 1 and 4 of the sum are noise."""
    torch.manual_seed(0)
    model = svd.sparsify_(Net(), example_inputs=TOKENS, **settings)
    with torch.no_grad():
        for _, found in named_posteriors(model):
            theta = found.mu if hasattr(found, "mu") else found.weight
            found.log_sigma2.copy_((theta.square() + 1e-12).log() - 1.2 + spread * torch.randn(theta.shape))
        for layer in (model.left, model.right):
            if hasattr(layer, "log_sigma2"):
                layer.log_sigma2[[1, 4]] += 12
    return model


@pytest.mark.parametrize("prior", PRIORS)
def test_single_weights_go_by_their_own_gain(prior: Prior) -> None:
    model = trained(prior=prior)
    masks = svd.compute_masks(model, threshold="evidence")
    for name, layer in named_posteriors(model):
        expected = layer.log_alpha() < find_cut(prior)
        assert torch.equal(masks[name]["weight"].bool(), expected)
        assert 0 < expected.sum() < expected.numel()
    assert (masks["table"]["weight"][2] == 1).all()  # the padding row is a constant


@pytest.mark.parametrize("example_inputs", [None, TOKENS])
def test_channels_go_by_the_sum_of_their_weights_gains(example_inputs: Tensor | None) -> None:
    model = trained()
    masks = svd.compute_masks(model, structure="structured", threshold="evidence", example_inputs=example_inputs)
    gains = {n: evidence_gain(layer.log_alpha()).sum(1) for n, layer in named_posteriors(model) if n != "table"}
    together = gains["left"] + gains["right"]
    for name in ("left", "right"):
        gain = gains[name] if example_inputs is None else together
        assert torch.equal(masks[name]["weight"].bool().all(1), gain < 0)
        assert {1, 4} <= set((gain >= 0).nonzero().flatten().tolist()) and (gain < 0).any()
    if example_inputs is not None:
        small, _ = svd.shrink(model, example_inputs, masks)
        assert small.left.out_features == (together < 0).sum()


def test_the_padding_row_has_no_part_in_the_gain_of_a_column() -> None:
    model = trained()
    with torch.no_grad():
        model.table.log_sigma2[:, 3] += 20.0
    masks = svd.compute_masks(model, structure="structured", threshold="evidence")
    assert (masks["table"]["weight"][:, 3] == 0).all()


@pytest.mark.parametrize("structure", ["unstructured", "structured"])
def test_gates_go_by_their_gain(structure: str) -> None:
    model = trained(granularity="gate")
    masks = svd.compute_masks(model, structure=structure, threshold="evidence", example_inputs=TOKENS)
    gate = model.left.gate
    kept = gate.log_alpha() < find_cut("log_uniform")
    assert 0 < kept.sum() < 8
    assert torch.equal(masks["left"]["bias"].bool(), kept)


def test_opd_ranks_channels_by_precision_times_square() -> None:
    model = trained(spread=4.0)
    kept = {}
    for criterion in ("log_alpha", "opd"):
        masks = svd.compute_masks(model, structure="structured", ratio=0.5, scope="layer", criterion=criterion)
        kept[criterion] = masks["left"]["weight"].bool().all(1)
    damage = (model.left.weight.square() / model.left.log_sigma2.exp()).sum(1)
    assert torch.equal(kept["opd"], damage > damage.sort().values[3])
    assert not torch.equal(kept["opd"], kept["log_alpha"])
    coupled = svd.compute_masks(
        model, structure="structured", ratio=0.5, scope="layer", criterion="opd", example_inputs=TOKENS
    )
    damage = damage + (model.right.weight.square() / model.right.log_sigma2.exp()).sum(1)
    assert torch.equal(coupled["left"]["bias"].bool(), damage > damage.sort().values[3])
    weights = [svd.compute_masks(model, ratio=0.5, criterion=name)["head"]["weight"] for name in ("log_alpha", "opd")]
    assert torch.equal(*weights)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "ard": (
        lambda: svd.compute_masks(trained(prior="ard"), threshold="evidence"),
        "cannot decide about table, whose prior is 'ard': it is fitted to each weight",
    ),
    "ard in a recipe": (
        lambda: make_settings(
            recipe.Recipe, {"posterior": {"prior": "ard"}, "masks": {"threshold": "evidence"}}
        ),
        "masks.threshold = 'evidence' cannot decide with posterior.prior = 'ard'",
    ),
    "a ratio, too": (
        lambda: svd.compute_masks(trained(), threshold="evidence", ratio=0.5),
        "masks.threshold = 'evidence' and ratio = 0.5 both say how much goes",
    ),
    "n:m, too": (
        lambda: svd.MaskSettings(threshold="evidence", structure="n:m"),
        "masks.threshold = 'evidence' and structure = 'n:m' both say",
    ),
    "opd without a ratio": (
        lambda: svd.compute_masks(trained(), criterion="opd"),
        "masks.criterion = 'opd' ranks, and has no threshold: set masks.ratio",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    act, message = REFUSED[case]
    with pytest.raises((SettingError, ValueError), match=message):
        act()


def test_a_run_decides_by_the_evidence_and_draws_it(tmp_path: Path) -> None:
    values = {
        "data": {"limit": 100, "batch_size": 50},
        "sparse": {"epochs": 1},
        "posterior": {"init_log_sigma2": -6.0},
        "masks": {"threshold": "evidence", "allow_empty": True},
    }
    settings = make_settings(recipe.Recipe, values)
    assert settings.resolved_threshold == "evidence"
    made = compress(settings, tmp_path, [])
    curve = json.loads((tmp_path / "curve.json").read_text())
    assert curve["chosen"] == curve["thresholds"][-1] == "evidence"
    kept, total = count_weights(made.masked, made.masks)
    assert curve["compression"][-1] == pytest.approx(total / kept)
    assert curve["compression"][-1] > curve["compression"][0] > 1  # it decides below a log alpha of 0
    draw_threshold_curve(curve, find_decision(values, curve), tmp_path / "curve.png")
    assert matplotlib.image.imread(tmp_path / "curve.png").std() > 0
