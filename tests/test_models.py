"""Networks by name: the papers' shapes, what timm's tools need of them, and what a bad name, argument or file says."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd import models, testing
from nni_sparsevd.errors import FileFormatError, ModelError
from nni_sparsevd.files import save_tensors
from nni_sparsevd.recipe import ModelSettings


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def lenet5(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    """Caffe's lenet.prototxt, written out: one ReLU only, after the first dense layer."""
    x = F.max_pool2d(F.conv2d(x, p["conv1.weight"], p["conv1.bias"]), 2)
    x = F.max_pool2d(F.conv2d(x, p["conv2.weight"], p["conv2.bias"]), 2)
    x = torch.relu(F.linear(x.flatten(1), p["fc1.weight"], p["fc1.bias"]))
    return F.linear(x, p["fc2.weight"], p["fc2.bias"])


def lenet300(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    for name in ("fc1", "fc2"):
        x = torch.relu(F.linear(x.flatten(1), p[f"{name}.weight"], p[f"{name}.bias"]))
    return F.linear(x, p["fc3.weight"], p["fc3.bias"])


@pytest.mark.parametrize(
    ("name", "parameters", "reference"), [("lenet_300_100", 266_610, lenet300), ("lenet5_caffe", 431_080, lenet5)]
)
def test_the_lenets_are_the_papers(name: str, parameters: int, reference: object) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    assert count(model) == parameters
    x = torch.randn(3, 1, 28, 28)
    assert callable(reference)
    torch.testing.assert_close(model(x), reference(x, dict(model.named_parameters())))


def test_vgg_like_is_thirteen_convolutions_at_any_width() -> None:
    model = timm.create_model("vgg_like", width=0.25)
    sizes = [layer.out_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert sizes == [16, 16, 32, 32, 64, 64, 64, 128, 128, 128, 128, 128, 128]
    assert not any(module.p for module in model.modules() if isinstance(module, nn.Dropout))
    assert model.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_resnet18_small_is_timms_with_another_stem() -> None:
    small, timms = timm.create_model("resnet18_small", num_classes=7), timm.create_model("resnet18", num_classes=7)
    own = {name: value.shape for name, value in small.state_dict().items()}
    theirs = {name: value.shape for name, value in timms.state_dict().items()}
    assert {name for name in theirs if own.get(name) != theirs[name]} == {"conv1.weight"}
    assert own.keys() == theirs.keys()
    assert own["conv1.weight"] == (64, 3, 3, 3)
    assert small.eval().forward_features(torch.randn(1, 3, 32, 32)).shape == (1, 512, 4, 4)
    narrow = timm.create_model("resnet18_small", channels=[8, 16, 32, 64], in_chans=1)
    assert narrow.eval()(torch.randn(1, 1, 32, 32)).shape == (1, 10)


def residual(x: Tensor, p: dict[str, Tensor], blocks: int) -> Tensor:
    """He et al. 2016, section 4.2, written out with batch norms by their running statistics; shortcuts of option A."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        place, number = name[: -len("conv1")], name[-1]
        norm = [p[f"{place}bn{number}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(F.conv2d(x, p[f"{name}.weight"], stride=stride, padding=1), *norm)

    x = torch.relu(conv(x, "conv1"))
    for stage in (1, 2, 3):
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            inner = conv(torch.relu(conv(x, f"layer{stage}.{block}.conv1", stride)), f"layer{stage}.{block}.conv2")
            shortcut = x[:, :, ::stride, ::stride]
            missing = inner[:, shortcut.shape[1] :] * 0
            x = torch.relu(inner + torch.cat([shortcut, missing], 1))
    return F.linear(x.mean((2, 3)), p["fc.weight"], p["fc.bias"])


@pytest.mark.parametrize(("name", "blocks", "parameters"), [("resnet20", 3, 269_722), ("resnet56", 9, 853_018)])
def test_the_residual_networks_are_the_papers(name: str, blocks: int, parameters: int) -> None:
    torch.manual_seed(0)
    model = testing.randomize_(timm.create_model(name)).eval()
    assert count(model) == parameters  # 0.27 and 0.85 million in table 6
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), residual(x, model.state_dict(), blocks), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shortcut", "removed"), [("pad", 9 + 1), ("projection", 9 + 3)])
def test_channels_leave_the_stream_of_a_residual_network(shortcut: str, removed: int) -> None:
    """One within each of nine blocks; and one of the stream, which padding hands on and projections begin anew."""
    torch.manual_seed(0)
    model = testing.randomize_(timm.create_model("resnet20", width=4, shortcut=shortcut)).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                module.weight[1] = 0
            if isinstance(module, nn.BatchNorm2d):
                module.bias[1] = 0
    small, plan = svd.shrink(model, image)
    assert small.conv1.out_channels == 3
    assert svd.check(model, small, image).max_rel_64 < 1e-12
    assert plan.removed == removed


@pytest.mark.parametrize("name", models.OWN_MODELS)
def test_own_networks_are_citizens_of_timm(name: str) -> None:
    assert timm.is_model(name)
    assert name in models.list_models(f"{name[:5]}*")
    model = timm.create_model(name, num_classes=5)
    config = timm.data.resolve_model_data_config(model)
    logits = model.eval()(torch.randn(2, *config["input_size"]))
    assert logits.shape == (2, 5)
    assert isinstance(model.get_submodule(model.pretrained_cfg["classifier"]), nn.Linear)


def test_the_papers_networks_come_first() -> None:
    assert tuple(models.list_models()[: len(models.OWN_MODELS)]) == models.OWN_MODELS
    assert models.list_models("lenet*") == ["lenet_300_100", "lenet5_caffe"]


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [("lenet_300_100", {}, 8), ("resnet18_small", {"channels": [4, 4, 8, 8]}, 8), ("lenet5_caffe", {}, 20)],
)
def test_create_fits_the_data_and_remembers_how(name: str, arguments: dict[str, object], size: int) -> None:
    model = models.create_model(
        ModelSettings(name=name, arguments=arguments), num_classes=4, in_chans=2, image_size=size
    )
    assert model.eval()(torch.randn(2, 2, size, size)).shape == (2, 4)
    origin = json.loads(json.dumps(models.read_origin(model)))
    again = models.build_model(origin["name"], origin["arguments"])
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_a_network_for_one_image_size_says_which() -> None:
    assert models.find_image_size(ModelSettings(name="vit_tiny_patch16_224")) == 224
    assert models.find_image_size(ModelSettings(name="resnet18_small")) is None


@pytest.mark.parametrize(
    ("settings", "size", "says"),
    [
        (ModelSettings(name="lenet_300_10"), 28, "lenet_300_100"),
        (ModelSettings(name="resnet18", arguments={"blok": 3}), 32, "blok"),
        (ModelSettings(name="lenet_300_100", arguments={"widht": 3}), 28, "widht"),
        (ModelSettings(name="resnet18_small", arguments={"widht": 3}), 28, "widht"),
        (ModelSettings(name="resnet20", arguments={"blocks": 4}), 28, "it takes num_classes, in_chans, width"),
        (ModelSettings(name="resnet20", arguments={"shortcut": "cut"}), 28, "one of pad, projection"),
        (ModelSettings(name="lenet5_caffe"), 8, "16"),
    ],
)
def test_what_cannot_be_built_is_named(settings: ModelSettings, size: int, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        models.create_model(settings, 10, 1, size)


def test_a_checkpoint_is_loaded_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = timm.create_model("lenet_300_100").state_dict()
    save_tensors(weights, tmp_path / "good.safetensors")
    loaded = models.create_model(ModelSettings(checkpoint=tmp_path / "good.safetensors"), 10, 1, 28).state_dict()
    assert all(torch.equal(weights[name], loaded[name]) for name in weights)


def test_a_checkpoint_takes_the_place_of_pretrained_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded to be overwritten: the recipe for photos says `pretrained`, and a file may follow."""
    asked = []
    build_model = models.build_model

    def build(name: str, arguments: Any, pretrained: bool = False) -> nn.Module:
        asked.append(pretrained)
        return build_model(name, arguments)

    monkeypatch.setattr(models.creation, "build_model", build)
    path = tmp_path / "weights.safetensors"
    save_tensors(models.create_model(ModelSettings(), 10, 1, 28).state_dict(), path)
    models.create_model(ModelSettings(pretrained=True, checkpoint=path), 10, 1, 28)
    assert not any(asked)


def test_a_checkpoint_that_does_not_fit_is_told_key_by_key(tmp_path: Path) -> None:
    weights = dict(timm.create_model("lenet_300_100").state_dict())
    del weights["fc2.bias"]
    weights |= {"fc9.bias": torch.zeros(3), "fc1.bias": torch.zeros(7)}
    path = tmp_path / "other.safetensors"
    save_tensors(weights, path)
    with pytest.raises(ModelError) as caught:
        models.create_model(ModelSettings(checkpoint=path), 10, 1, 28)
    for word in (str(path), "lacks fc2.bias", "fc9.bias", "fc1.bias of shape (7,)", "(300,)"):
        assert word in str(caught.value)


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "exploded",)  # type: ignore[return-value]

    path = tmp_path / "weights.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileFormatError, match=r"weights\.safetensors.*pickle"):
        models.create_model(ModelSettings(checkpoint=path), 10, 1, 28)
    assert not (tmp_path / "exploded").exists()
