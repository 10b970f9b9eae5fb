"""Plugins take whatever a network is called with: by position, by keyword, nested."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nni_sparsevd.errors import SparseVDWarning


@dataclass
class Answer:
    logits: Tensor
    factor: Any = None


class Asked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor, *, factor: float = 1.0, options: Any = None) -> Answer:
        return Answer(self.head(torch.relu(self.hidden(x + options["shift"]))), factor)


INPUTS = ((torch.randn(2, 5),), {"factor": 2, "options": {"shift": torch.randn(2, 5)}})


def test_torch_pruning_cuts_a_network_that_is_called_by_keyword() -> None:
    pytest.importorskip("torch_pruning")
    from nni_sparsevd.plugins.torch_pruning import SparseVDPruner
    from nni_sparsevd.regularize import Budget

    for settings in ({"pruning_ratio": 0.5}, {"budget": Budget(fraction=0.5)}):
        model = Asked()
        pruner = SparseVDPruner(model, INPUTS, ignored_layers=[model.head], **settings)
        pruner.update_regularizer()
        with pytest.warns(SparseVDWarning, match="the posterior has not been trained"):
            pruner.step()
        assert model.hidden.out_features == model.head.in_features == 6
        assert model(*INPUTS[0], **INPUTS[1]).logits.shape == (2, 3)


def test_nni_cuts_a_network_that_is_called_by_keyword() -> None:
    pytest.importorskip("nni")
    from nni_sparsevd.plugins.nni import ExactSpeedup

    masks = {"hidden": {"weight": torch.ones(12, 5), "bias": torch.ones(12)}}
    for mask in masks["hidden"].values():
        mask[::2] = 0
    model = Asked().eval()
    with torch.no_grad():
        model.hidden.weight[::2] = model.hidden.bias[::2] = 0
    expected = model(*INPUTS[0], **INPUTS[1]).logits
    small = ExactSpeedup(copy.deepcopy(model), INPUTS, masks).speedup_model()
    assert small.hidden.out_features == 6
    torch.testing.assert_close(small(*INPUTS[0], **INPUTS[1]).logits, expected)
    by_position = ExactSpeedup(nn.Bilinear(5, 5, 2), [torch.randn(2, 5), torch.randn(2, 5)], {}).inputs
    assert len(by_position.args) == 2  # a list holds the arguments, as everywhere in NNI
