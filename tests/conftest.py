"""What several test files need: networks whose tests mean something, and the data where it is."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import nn

from nni_sparsevd.testing import randomize_ as randomize_

torch.set_num_threads(1)


def thin_(model: nn.Module) -> nn.Module:
    """Random weights, and every third channel of every batch norm dead; in evaluation mode."""
    randomize_(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::3] = module.bias[::3] = 0
    return model.eval()
