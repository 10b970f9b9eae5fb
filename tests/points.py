"""A task of seconds without a host: eight numbers that two of them decide, and a network that learns it."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from nni_sparsevd.regularize import Regularizer, SparseVDSettings

SAMPLES, BATCH, EPOCHS, RATE = 64, 16, 6, 1e-2
STEPS = EPOCHS * SAMPLES // BATCH
SETTINGS = SparseVDSettings(learning_rate=0.3, kl_coefficient=0.5)


class Points(Dataset[dict[str, Tensor]]):
    """Eight inputs, of which two matter."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(SAMPLES, 8, generator=generator)
        self.y = (self.x[:, 0] * self.x[:, 1] > 0).long()

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"x": self.x[index], "labels": self.y[index]}


class Network(nn.Module):
    """Returns its loss, as the Trainer wants it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.body(x)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def train_rank(folder: Path) -> None:
    """Train on every second point, as one of two processes, and write the network."""
    dist.init_process_group("gloo")
    rank, network, data = dist.get_rank(), Network(), Points()
    regularizer = Regularizer(network, SETTINGS)
    wrapped = DistributedDataParallel(network)
    optimizer = torch.optim.SGD(network.parameters(), RATE)
    for step in range(6):
        torch.manual_seed(2 * step + rank)
        optimizer.zero_grad()
        wrapped(data.x[rank::2], data.y[rank::2])["loss"].backward()
        regularizer.regularize(step / 6, SAMPLES)
        optimizer.step()
    torch.save(network.state_dict(), folder / f"{rank}.pt")
