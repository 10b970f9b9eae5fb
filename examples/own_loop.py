"""Prune channels in a training loop of your own, and let the network shrink while it trains.

Gates on the channels learn which are noise; after each epoch the closed ones are removed, so the next epochs are
faster.  In the end the network is an ordinary, smaller one.  Run: `python examples/own_loop.py`
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.measure import count_macs

DENSE_EPOCHS, SPARSE_EPOCHS = 8, 15

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
x, y, x_test, y_test = images[:1400], labels[:1400], images[1400:], labels[1400:]

model = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(256, 10)),
)


def train_epoch(model, optimizer, schedule, kl_weight=0.0):
    model.train()
    for rows in torch.randperm(1400).split(50):
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        if kl_weight > 0:
            svd.regularize_(model, kl_weight)  # adds the gradient of kl_weight * KL
        optimizer.step()
        schedule.step()
    model.eval()


def make_optimizer(model, epochs):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    return optimizer, torch.optim.lr_scheduler.PolynomialLR(optimizer, 28 * epochs)


def report(title, model):
    error = 100 * (model(x_test).argmax(1) != y_test).float().mean()
    print(f"{title}: {count_macs(model, x[:1]):,} MACs, {error:.1f} % test error")


optimizer, schedule = make_optimizer(model, DENSE_EPOCHS)
for _ in range(DENSE_EPOCHS):
    train_epoch(model, optimizer, schedule)
report("dense", model)

svd.sparsify_(model, granularity="gate", example_inputs=x[:2])
optimizer, schedule = make_optimizer(model, SPARSE_EPOCHS)
for epoch in range(1, SPARSE_EPOCHS + 1):
    train_epoch(model, optimizer, schedule, kl_weight=1 / len(x))
    plan = svd.shrink_(model, x[:2], optimizer)
    report(f"epoch {epoch}, {plan.removed} channels removed", model)

svd.bake_(model)  # ordinary layers again
print(model)
