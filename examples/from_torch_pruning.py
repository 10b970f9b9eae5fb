"""A script for Torch-Pruning with a budget in the place of a ratio: 30 % of the multiplications.

`SparseVDPruner` has the calls of `GroupNormPruner`: `update_regularizer` once an epoch, `regularize` in each step,
`step` at the end.  Run: `python examples/from_torch_pruning.py`
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from nni_sparsevd.measure import count_macs
from nni_sparsevd.plugins.torch_pruning import Budget, SparseVDPruner, SparseVDSettings

EPOCHS = 8

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
x, y, x_test, y_test = images[:1400], labels[:1400], images[1400:], labels[1400:]


def train(model, epochs, pruner=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, 28 * epochs)
    model.train()
    for _ in range(epochs):
        if pruner is not None:
            pruner.update_regularizer()
        for rows in torch.randperm(1400).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            if pruner is not None:
                pruner.regularize(model)
            optimizer.step()
            schedule.step()
    model.eval()


def report(title, model):
    error = 100 * (model(x_test).argmax(1) != y_test).float().mean()
    print(f"{title}: {count_macs(model, x[:1]):,} MACs, {error:.1f} % test error")


model = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(256, 10)),
)
train(model, EPOCHS)
report("dense", model)

pruner = SparseVDPruner(
    model,
    x[:2],
    ignored_layers=[model[-1]],
    settings=SparseVDSettings(n_train=len(x), posterior={"granularity": "gate"}, kl_coefficient=5.0),
    training_steps=28 * EPOCHS,
    budget=Budget(kind="macs", fraction=0.3),
)
train(model, EPOCHS, pruner)
pruner.step()
report("cut", model)
print(f"{100 * pruner.arrival.relative_error:+.1f} % off the budget")
train(model, 4)
report("fine-tuned", model)
