"""FSDP2: each of two processes holds half of every parameter, and training goes as in one process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from processes import run_ranks
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

import nni_sparsevd as svd
from nni_sparsevd.regularize import Regularizer, SparseVDSettings

STEPS, SAMPLES = 12, 8


def train_half(folder: Path, variance: str) -> None:
    """Train as one of two processes; the first one writes the whole network and its KL."""
    dist.init_process_group("gloo")
    rank, regularizer = dist.get_rank(), regularized(variance)
    model = regularizer.model
    for layer in (model[0], model[2], model[4], model):
        fully_shard(layer)
    kl = trained(regularizer, *(part[rank::2] for part in batch()))
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        torch.save({"state": whole, "kl": kl}, folder / "whole.pt")


def regularized(variance: str) -> Regularizer:
    """Convolutions both ways, so that shared variances lie along either axis."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2), nn.Flatten(), nn.Linear(196, 3)
    with torch.no_grad():  # away from 0, where the KL's pull, of the size 1 / theta, makes much of rounding
        for layer in (layers[0], layers[2], layers[4]):
            layer.weight.add_(0.2 * layer.weight.sign())
    posterior = {"variance": variance, "init_log_sigma2": -40.0}
    return Regularizer(nn.Sequential(*layers), SparseVDSettings(n_train=1_000_000, posterior=posterior, warmup=0.0))


def batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(SAMPLES, 3, 6, 6, generator=draw), torch.arange(SAMPLES) % 3


def trained(regularizer: Regularizer, x: Tensor, y: Tensor) -> float:
    """Train with next to no noise, which each process draws for itself; returns the KL."""
    model = regularizer.model
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for step in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        regularizer.regularize(step / STEPS)
        optimizer.step()
    return float(regularizer.kl())


@pytest.mark.parametrize("variance", ["weight", "channel"])
def test_halves_learn_what_the_whole_learns(tmp_path: Path, variance: str) -> None:
    run_ranks(2, train_half, tmp_path, variance)
    learned = torch.load(tmp_path / "whole.pt", weights_only=True)
    regularizer = regularized(variance)
    start = {name: value.clone() for name, value in regularizer.model.state_dict().items()}
    assert learned["kl"] == pytest.approx(trained(regularizer, *batch()), rel=1e-5)
    for name, value in regularizer.model.state_dict().items():
        torch.testing.assert_close(learned["state"][name], value, rtol=1e-4, atol=1e-5)
        assert not torch.equal(value, start[name])
    whole = regularized(variance).model
    whole.load_state_dict(learned["state"])  # as on one process: masks, shrinking and the rest
    kept = {name: mask["weight"].mean() for name, mask in svd.compute_masks(whole, ratio=0.5, scope="layer").items()}
    assert all(0 < share < 1 for share in kept.values()), kept
