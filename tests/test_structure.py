"""timm's text of a pruned network: timm alone gives the network back, or we say that it cannot."""

import pytest
import timm
import torch
from conftest import thin_
from timm.models import adapt_model_from_string
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.errors import ModelError

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def shrunk(name: str) -> nn.Module:
    small, plan = svd.shrink(thin_(timm.create_model(name, num_classes=5)), IMAGE)
    assert plan.removed > 100
    return small


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_050", "densenet121"])
def test_timm_alone_gives_the_network_back(name: str) -> None:
    small = shrunk(name)
    text = svd.timm_structure(small, IMAGE, arguments={"num_classes": 5})
    rebuilt = adapt_model_from_string(timm.create_model(name, num_classes=5), text)
    rebuilt.load_state_dict(small.state_dict())
    assert torch.equal(rebuilt.eval()(IMAGE), small(IMAGE))


def test_the_text_is_that_of_timms_own_files() -> None:
    text = svd.timm_structure(shrunk("resnet18"), IMAGE, arguments={"num_classes": 5})
    first = text.split("***")[0]
    assert first.startswith("conv1.weight:[") and first.endswith(", 3, 7, 7]")


def test_what_timm_cannot_rebuild_is_an_error() -> None:
    grouped = shrunk("regnety_002")
    with pytest.raises(ModelError, match=r"timm cannot rebuild regnety_002 .* size mismatch for s1\..*; use save"):
        svd.timm_structure(grouped, IMAGE, arguments={"num_classes": 5})
    with pytest.raises(ModelError, match="timm does not know Sequential"):
        svd.timm_structure(nn.Sequential(nn.Conv2d(3, 4, 1)), IMAGE)
    changed = shrunk("resnet18")
    changed.act1 = nn.Sigmoid()  # shapes cannot tell
    with pytest.raises(ModelError, match="computes something else"):
        svd.timm_structure(changed, IMAGE, arguments={"num_classes": 5})
