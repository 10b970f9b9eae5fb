"""A script for NNI, of which one line was changed: the import of the pruner.

`SparseVDPruner` has the arguments of `TaylorPruner`; the first one that is made repairs NNI for today's PyTorch.
`ExactSpeedup` may take the place of `ModelSpeedup`, too.  Run: `python examples/from_nni.py`
"""

import nni
import torch
import torch.nn.functional as F
from nni.compression.utils import TorchEvaluator
from sklearn.datasets import load_digits
from torch import nn

# from nni.compression.pruning import TaylorPruner
from nni_sparsevd.plugins.nni import ExactSpeedup, SparseVDSettings
from nni_sparsevd.plugins.nni import SparseVDPruner as TaylorPruner

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
labels = torch.tensor(digits.target)
x, y, x_test, y_test = images[:1400], labels[:1400], images[1400:], labels[1400:]


def training_step(batch, model):
    return F.cross_entropy(model(batch[0]), batch[1])


def train(model, optimizer, training_step, lr_scheduler=None, max_steps=None, max_epochs=None):
    model.train()
    steps = max_steps or 28 * max_epochs
    while steps > 0:
        for rows in torch.randperm(1400).split(50)[:steps]:
            optimizer.zero_grad()
            training_step((x[rows], y[rows]), model).backward()
            optimizer.step()
        steps -= 28


def report(title, model):
    error = 100 * (model.eval()(x_test).argmax(1) != y_test).float().mean()
    print(f"{title}: {sum(p.numel() for p in model.parameters()):,} parameters, {error:.1f} % test error")


model = nn.Sequential(
    *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)),
    *(nn.Flatten(), nn.Linear(256, 10)),
)
optimizer = nni.trace(torch.optim.Adam)(model.parameters(), lr=0.003)
train(model, optimizer, training_step, max_epochs=8)
report("dense", model)

config_list = [{"op_types": ["Conv2d"], "sparse_ratio": 0.5, "granularity": "out_channel"}]
evaluator = TorchEvaluator(train, optimizer, training_step)
pruner = TaylorPruner(model, config_list, evaluator, training_steps=280, settings=SparseVDSettings(n_train=len(x)))
_, masks = pruner.compress()
report("masked", model)
pruner.unwrap_model()

small = ExactSpeedup(model, x[:2], masks).speedup_model()
report("smaller", small)
train(small, torch.optim.Adam(small.parameters(), lr=0.003), training_step, max_epochs=4)
report("fine-tuned", small)
