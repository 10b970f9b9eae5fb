"""Masks on the weights that write a channel, extended to all that still makes it a constant."""

import copy

import pytest
import torch
import torch.nn.functional as F
from shrinking import Net, image, prepared
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.masks import apply_masks_
from nni_sparsevd.shrinking import extend_masks
from nni_sparsevd.testing import relative_difference


def residual() -> nn.Module:
    return prepared(
        Net(
            lambda m, x: m.head((F.relu(m.norm(m.stem(x))) + m.norm_b(m.b(x))).mean((2, 3))),
            stem=nn.Conv2d(3, 6, 3, padding=1),
            norm=nn.BatchNorm2d(6),
            b=nn.Conv2d(3, 6, 1),
            norm_b=nn.BatchNorm2d(6),
            head=nn.Linear(6, 4),
        )
    )


def without(model: nn.Module, **rows: list[int]) -> dict[str, dict[str, torch.Tensor]]:
    masks = {}
    for name, dead in rows.items():
        mask = torch.ones_like(model.get_submodule(name).weight)
        mask[dead] = 0
        masks[name] = {"weight": mask}
    return masks


def extended(model: nn.Module, masks: dict[str, dict[str, torch.Tensor]]) -> dict[str, dict[str, torch.Tensor]]:
    return extend_masks(model, masks, svd.channel_graph(model, image()))


def test_a_channel_that_no_weight_writes_is_masked_everywhere():
    model = residual()
    masks = without(model, stem=[1, 4, 5], b=[1, 4])
    extended_masks = extended(model, masks)
    for name in ("norm", "norm_b"):
        for key in ("weight", "bias"):
            assert (extended_masks[name][key] == 0).nonzero().flatten().tolist() == [1, 4]  # b still writes 5
    for name in ("stem", "b"):
        assert (extended_masks[name]["bias"] == 0).nonzero().flatten().tolist() == [1, 4]
        assert torch.equal(extended_masks[name]["weight"], masks[name]["weight"].float())
    small, plan = svd.shrink(model, image(), extended_masks)
    assert plan.removed == 2 and small.stem.out_channels == 4
    masked = copy.deepcopy(model)
    apply_masks_(masked, extended_masks)
    assert relative_difference(masked, small, image()) < 1e-10


def test_masks_and_model_are_left_alone():
    model = residual()
    before, masks = copy.deepcopy(model.state_dict()), without(model, stem=[1], b=[1])
    before_masks = copy.deepcopy(masks)
    extended(model, masks)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(masks[name]["weight"], before_masks[name]["weight"]) for name in before_masks)


def test_nothing_is_added_where_a_weight_still_writes():
    model = residual()
    assert set(extended(model, without(model, stem=[0, 1]))) == {"stem"}


def test_the_output_of_the_network_and_a_last_channel_stay():
    model = residual()
    assert set(extended(model, without(model, head=[0]))) == {"head"}
    masks = without(model, stem=[0, 1, 2, 3, 4], b=[0, 1, 2, 3, 4])
    extended_masks = extended(model, masks)
    assert extended_masks["norm"]["weight"].tolist() == [0, 0, 0, 0, 0, 1]


def test_masks_that_do_not_fit_are_named():
    model = residual()
    with pytest.raises(svd.SparseVDError, match="stem"):
        extended(model, {"stem": {"weight": torch.ones(1)}})
