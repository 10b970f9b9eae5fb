"""Networks in files: saved and loaded they are the same, and a file that is not right says so, by name."""

import copy
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from conftest import randomize_
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd import files, models
from nni_sparsevd.errors import FileFormatError, ModelError, SettingError
from nni_sparsevd.storage import load, save
from nni_sparsevd.storage.networks import FORMAT


class Net(nn.Module):
    """A network that timm does not know; the head gets a bias when a constant is folded, two layers share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.deep = nn.Conv2d(6, 6, 3, groups=6, padding=1)
        self.hidden, self.twin = nn.Linear(6, 6), nn.Linear(6, 6)
        self.twin.weight = self.hidden.weight
        self.head = nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.deep(self.norm(self.first(x)).relu()).mean((2, 3))
        return self.head(self.twin(self.hidden(x).relu()).sigmoid())


def thinned(model: nn.Module) -> nn.Module:
    """Every third channel dead."""
    torch.manual_seed(0)
    randomize_(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[1::3] = 0
                module.bias[1::3] = 0
            elif isinstance(module, nn.Linear) and module.out_features > 10:
                module.weight[1::3] = 0
    return model


def own() -> nn.Module:
    torch.manual_seed(0)
    model = thinned(Net())
    with torch.no_grad():
        model.hidden.weight[1] = 0
        model.hidden.weight[:, 1] = 0
        model.deep.bias[1] = model.hidden.bias[1] = 0
        model.twin.bias[1] = 0.5
    return model


def image(channels: int = 3, size: int = 32) -> Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))


def assert_same(saved: nn.Module, loaded: nn.Module, x: Tensor) -> None:
    assert type(loaded) is type(saved) and not loaded.training
    before, after = saved.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    for name, value in before.items():
        assert after[name].dtype == value.dtype and torch.equal(after[name], value)
    assert [n for n, _ in saved.named_parameters()] == [n for n, _ in loaded.named_parameters()]
    saved = copy.deepcopy(saved).eval()
    with torch.no_grad():
        expected, computed = saved(x), loaded(x)
    assert (computed - expected).abs().max() <= 1e-6 * expected.abs().max() and expected.std() > 0


TIMM: dict[str, tuple[str, dict[str, Any], int]] = {
    "resnet18": ("resnet18", {"num_classes": 5}, 3),
    "grey": ("resnet18", {"num_classes": 5, "in_chans": 1}, 1),
    "mobilenetv3": ("mobilenetv3_small_050", {"num_classes": 5}, 3),
    "deit": ("deit_tiny_patch16_224", {"num_classes": 5, "img_size": 32, "depth": 2}, 3),
    "ours": ("resnet18_small", {"num_classes": 5}, 3),
    "ours with arguments": ("vgg_like", {"num_classes": 5, "width": 0.25}, 3),
}


@pytest.mark.parametrize("case", TIMM)
def test_shrunk_timm_networks(case: str, tmp_path: Path) -> None:
    name, arguments, channels = TIMM[case]
    model = thinned(models.build_model(name, arguments))
    small, plan = svd.shrink(model, image(channels))
    assert plan.removed > 0
    save(small, tmp_path / "small.safetensors")
    loaded = load(tmp_path / "small.safetensors")
    assert_same(small, loaded, image(channels))
    # it goes on as the one that was saved: sizes agree with tensors, a new head fits, and it can be saved again
    assert str(loaded) == str(small)
    loaded.train()(image(channels)).sum().backward()
    save(loaded.eval(), tmp_path / "again.safetensors")
    assert_same(loaded, load(tmp_path / "again.safetensors"), image(channels))


def test_a_timm_network_knows_its_name(tmp_path: Path) -> None:
    small, _ = svd.shrink(thinned(timm.create_model("resnet18", num_classes=7, in_chans=1)), image(1))
    save(small, tmp_path / "small.safetensors")
    assert_same(small, load(tmp_path / "small.safetensors"), image(1))


def test_name_and_arguments_may_be_given(tmp_path: Path) -> None:
    arguments = {"img_size": 32, "depth": 2, "num_classes": 5}
    small, _ = svd.shrink(thinned(timm.create_model("deit_tiny_patch16_224", **arguments)), image())
    with pytest.raises(ModelError, match=r"has .* where the network has None, at 'blocks\.2'.*arguments="):
        save(small, tmp_path / "small.safetensors")  # its name alone builds twelve blocks
    assert not list(tmp_path.iterdir())
    save(small, tmp_path / "small.safetensors", name="deit_tiny_patch16_224", arguments=arguments)
    assert_same(small, load(tmp_path / "small.safetensors"), image())


def test_a_network_of_ones_own_comes_back_into_a_fresh_one(tmp_path: Path) -> None:
    small, plan = svd.shrink(own(), image())
    assert plan.removed > 0 and small.head.bias is not None  # folding gave it one
    assert small.twin.weight is small.hidden.weight
    path = tmp_path / "small.safetensors"
    save(small, path)
    with pytest.raises(FileFormatError, match=r"small\.safetensors: holds a Net that timm cannot build.*model=fresh"):
        load(path)
    fresh = Net().train()
    loaded = load(path, model=fresh)
    assert loaded is fresh and str(loaded) == str(small)
    assert_same(small, loaded, image())
    assert loaded.twin.weight is loaded.hidden.weight and isinstance(loaded.head.bias, nn.Parameter)
    loaded.head.bias.sum().backward()
    assert loaded.head.bias.grad is not None


class Recurring(nn.Module):
    """Every second layer is there under two names, and its weight is also that of a third one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(40))
        self.again = nn.ModuleList(self.layers[::2])
        self.tied = nn.ModuleList(nn.Linear(5, 5) for _ in range(20))
        for first, second in zip(self.layers[::2], self.tied, strict=True):
            second.weight = first.weight

    def forward(self, x: Tensor) -> Tensor:
        for layer in (*self.layers, *self.again, *self.tied):
            x = layer(x)
        return x


def test_shared_modules_and_tied_weights_stay_so(tmp_path: Path) -> None:
    model = Recurring()
    save(model, tmp_path / "model.safetensors")
    back = load(tmp_path / "model.safetensors", Recurring())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in back.state_dict().items())
    assert len(list(back.parameters())) == len(list(model.parameters()))
    for first, second, third in zip(back.layers[::2], back.again, back.tied, strict=True):
        assert first is second and first.weight is third.weight


def test_an_unpruned_network_is_a_network_too(tmp_path: Path) -> None:
    model = randomize_(Net()).double()
    save(model, tmp_path / "a.safetensors")
    assert_same(model, load(tmp_path / "a.safetensors", model=Net()), image().double())


def test_no_negative_zeros_are_stored(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.fill_(-0.0)
    save(model, tmp_path / "a.safetensors")
    assert not torch.signbit(load_file(tmp_path / "a.safetensors")["weight"]).any()


def wrap_network(network: nn.Module) -> nn.Module:
    return torch.compile(network)  # type: ignore[return-value]


def wrap_layers(network: nn.Module) -> nn.Module:
    network.deep, network.head = nn.DataParallel(network.deep), wrap_network(network.head)
    return network


WRAPPED = {
    "compiled": wrap_network,
    "data parallel": nn.DataParallel,
    "compiled, data parallel": lambda network: wrap_network(nn.DataParallel(network)),
    "layers": wrap_layers,
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_of_a_network_are_not_saved(tmp_path: Path, case: str) -> None:
    """The names that `torch.compile` and data parallelism put before those of the tensors are of no use in a file."""
    saved = own()
    wrapped = WRAPPED[case](copy.deepcopy(saved))
    names = list(wrapped.state_dict())
    save(wrapped, tmp_path / "wrapped.safetensors")
    save(saved, tmp_path / "net.safetensors")
    assert list(wrapped.state_dict()) == names
    (_, metadata), (_, expected) = (files.load_tensors(tmp_path / f"{name}.safetensors") for name in ("wrapped", "net"))
    assert metadata == expected
    assert_same(saved, load(tmp_path / "wrapped.safetensors", model=Net()), image())
    fresh = WRAPPED[case](Net())
    assert load(tmp_path / "net.safetensors", model=fresh) is fresh
    assert list(fresh.state_dict()) == names
    for name, tensor in wrapped.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], tensor)


def test_a_wrapped_network_of_timm_knows_its_name(tmp_path: Path) -> None:
    model = randomize_(timm.create_model("test_resnet"))
    compiled = wrap_network(model)
    save(compiled, tmp_path / "net.safetensors")
    assert_same(model, load(tmp_path / "net.safetensors"), image())
    svd.save_folder(compiled, tmp_path / "folder")
    assert_same(model, load(tmp_path / "folder" / "model.safetensors"), image())
    assert svd.timm_structure(compiled, image()) == svd.timm_structure(model, image())


def test_posteriors_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="Net still has posteriors"):
        save(svd.sparsify_(Net()), tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


# Files that are not right.


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save(own(), path)
    return path


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], object]) -> None:
    """Alter header and tensors of a good file, and write it as any program could."""
    tensors, metadata = files.load_tensors(path)
    header = json.loads(metadata[FORMAT])
    replaced = change(header, tensors)
    header = header if replaced is None else replaced
    save_file(tensors, path, {FORMAT: header if isinstance(header, str) else json.dumps(header)})


def test_rewriting_alone_does_no_harm(good: Path) -> None:
    rewrite(good, lambda header, tensors: None)
    assert_same(own(), load(good, model=Net()), image())


@pytest.mark.parametrize("left", [0, 1, 7, 8, 100, 0.5, 0.999])
def test_truncated(good: Path, left: float) -> None:
    content = good.read_bytes()
    good.write_bytes(content[: int(left * len(content)) if isinstance(left, float) else left])
    with pytest.raises(FileFormatError, match=r"net\.safetensors: not a whole safetensors file"):
        load(good, model=Net())


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=r"nowhere\.safetensors: no such file"):
        load(tmp_path / "nowhere.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(FileFormatError, match=r"folder\.safetensors"):
        load(tmp_path / "folder.safetensors")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch exploded",)


@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle"])
def test_pickles_are_refused_unread(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        torch.save({"weight": Bomb()}, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(FileFormatError, match=r"net\.pth: not a whole safetensors file.*a pickled file is never read"):
        load(path, model=Net())
    assert not (tmp_path / "exploded").exists()


def test_foreign_safetensors(tmp_path: Path) -> None:
    save_file(Net().norm.state_dict(), tmp_path / "foreign.safetensors")
    with pytest.raises(FileFormatError, match=r"foreign\.safetensors: plain tensors, not a network written by"):
        load(tmp_path / "foreign.safetensors", model=Net())


def put(*path: str, value: object) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    """Set an entry of the header."""

    def change(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        place = header
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    return change


def tensor(name: str, value: Tensor | None) -> Callable[[dict[str, Any], dict[str, Tensor]], None]:
    def change(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        tensors.pop(name, None)
        if value is not None:
            tensors[name] = value

    return change


HOSTILE: dict[str, tuple[Callable[..., object], str]] = {
    "header no JSON": (lambda h, t: "{", "header is damaged"),
    "header a list": (lambda h, t: "[1, 2]", "header is damaged"),
    "header a number": (lambda h, t: "3", "header is damaged"),
    "no version": (lambda h, t: {k: v for k, v in h.items() if k != "version"}, "header is damaged.*version"),
    "no name": (lambda h, t: {k: v for k, v in h.items() if k != "name"}, "header is damaged.*name"),
    "no class": (lambda h, t: {k: v for k, v in h.items() if k != "class"}, "header is damaged.*class"),
    "a later version": (put("version", value=2), "format version 2, this release reads 1"),
    "version in words": (put("version", value="one"), "format version one"),
    "attributes a list": (put("attributes", value=["first"]), "attributes are no table"),
    "unknown module": (put("attributes", "evil", value={"x": 1}), "sets attributes of 'evil', which Net does not have"),
    "module no table": (put("attributes", "first", value=3), "sets attributes of 'first'"),
    "class": (put("attributes", "first", "__class__", value="Linear"), r"sets first\.__class__"),
    "private": (put("attributes", "first", "_parameters", value={}), r"sets first\._parameters"),
    "method": (put("attributes", "first", "forward", value="print"), r"sets first\.forward"),
    "root method": (put("attributes", "", "forward", value="print"), r"sets \.forward"),
    "training": (put("attributes", "first", "training", value=True), r"sets first\.training"),
    "new attribute": (put("attributes", "first", "hidden_size", value=3), r"sets first\.hidden_size"),
    "word for number": (put("attributes", "first", "in_channels", value="3"), r"sets first\.in_channels to '3'"),
    "table for number": (put("attributes", "first", "in_channels", value={"a": 1}), r"sets first\.in_channels"),
    "number for tuple": (put("attributes", "first", "stride", value=1), r"sets first\.stride to 1"),
    "norms a list": (put("remembering", value=["norm"]), "header is damaged: remembering is .* not a table"),
    "norm of another kind": (put("remembering", "norm", value={"channel_dim": 1, "removed": 1}), "remembers of 'norm'"),
    "attentions a word": (put("attentions", value="head"), "header is damaged: attentions is 'head', not a list"),
    "attention of another kind": (put("attentions", value=["head"]), "a smaller attention of 'head'"),
    "missing tensor": (tensor("first.weight", None), r"lacks first\.weight"),
    "tensor of nobody": (tensor("third.weight", torch.ones(2)), r"holds third\.weight, but Net has no third"),
    "tensor of no use": (tensor("first.wait", torch.ones(2)), r"holds first\.wait, but first has no wait"),
    "tensor for a module": (tensor("first", torch.ones(2)), "holds first, but the network has no first"),
    "other dimensions": (tensor("first.weight", torch.ones(2, 3)), r"first\.weight has 2 dimensions, .* has 4"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_by_name(good: Path, case: str) -> None:
    change, message = HOSTILE[case]
    rewrite(good, change)
    with pytest.raises(FileFormatError, match=r"net\.safetensors: .*" + message):
        load(good, model=Net())


BUILDS: dict[str, tuple[object, object, str]] = {
    "unknown network": ("resnet1800", {}, "no network is named 'resnet1800'"),
    "hub": ("hf-hub:someone/something", {}, "no network is named"),
    "name a number": (5, {}, "names no network"),
    "name a list": (["resnet18"], {}, "names no network"),
    "arguments a list": ("resnet18", [1], "names no network"),
    "unknown argument": ("lenet_300_100", {"widht": 3}, "no argument widht"),
    "wrong argument": ("resnet18", {"num_classes": "many"}, "cannot be built"),
    "other weights": ("resnet18", {"checkpoint_path": "evil.pth"}, "wants to load other files"),
    "download": ("resnet18", {"pretrained": True}, "wants to load other files"),
    "other address": ("resnet18", {"pretrained_cfg": {"url": "https://evil"}}, "wants to load other files"),
    "another network": ("lenet_300_100", {}, "it of another network|holds"),
}


@pytest.mark.parametrize("case", BUILDS)
def test_a_file_says_what_to_build_and_no_more(good: Path, case: str) -> None:
    name, arguments, message = BUILDS[case]

    def change(header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        header.update(name=name, arguments=arguments, attributes={})

    rewrite(good, change)
    with pytest.raises(FileFormatError, match=r"net\.safetensors: .*(" + message + ")"):
        load(good)


# Whole or absent.


@pytest.mark.parametrize("step", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, existing: bool
) -> None:
    path = tmp_path / "net.safetensors"
    if existing:
        save(Net(), path)
    before = path.read_bytes() if existing else None

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, step, full)
        with pytest.raises(FileFormatError, match=r"net\.safetensors: cannot be written.*No space left on device"):
            save(own(), path)
    assert [file.name for file in tmp_path.iterdir()] == (["net.safetensors"] if existing else [])
    assert not existing or path.read_bytes() == before
    save(own(), path)  # and the next one succeeds
    assert_same(own(), load(path, model=Net()), image())


def test_a_write_cut_off_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"old")
    real = os.fdopen

    def limited(*arguments: Any) -> Any:
        file = real(*arguments)

        class Limited:
            def __enter__(self) -> Any:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, content: bytes) -> None:
                file.write(content[:10])
                raise OSError(28, "No space left on device")

        return Limited()

    with monkeypatch.context() as broken:
        broken.setattr(os, "fdopen", limited)
        with pytest.raises(FileFormatError, match=r"net\.safetensors: cannot be written"):
            save(Net(), path)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_folders_are_made_and_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "net.safetensors"
    save(Net(), path)
    assert path.stat().st_mode & 0o777 == 0o644
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFormatError, match=r"net\.safetensors: cannot be written"):
        save(Net(), tmp_path / "file" / "net.safetensors")


def test_parameters_that_are_no_longer_tied_come_back_as_they_were(tmp_path: Path) -> None:
    model = own().eval()
    model.twin.weight = nn.Parameter(torch.randn(6, 6))
    save(model, tmp_path / "net.safetensors")
    assert_same(model, load(tmp_path / "net.safetensors", Net()), image())


class Scaled(nn.Module):
    """A buffer that no file has."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.full((4,), 0.5), persistent=False)
        self.register_buffer("order", torch.arange(4), persistent=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x * self.scale)[:, self.order])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_buffers_outside_the_file_get_its_type(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Scaled().to(dtype).eval()
    save(model, tmp_path / "net.safetensors")
    loaded = load(tmp_path / "net.safetensors", Scaled())
    x = torch.randn(3, 4, dtype=dtype)
    assert torch.equal(loaded(x), model(x)) and loaded.order.dtype == torch.int64


def test_a_file_has_no_arguments_that_would_open_other_files(tmp_path: Path) -> None:
    arguments = {"num_classes": 5, "pretrained_cfg_overlay": {"mean": [0.1, 0.2, 0.3]}}
    model = models.build_model("test_resnet", arguments).eval()
    save(model, tmp_path / "net.safetensors")
    loaded = load(tmp_path / "net.safetensors")
    assert_same(model, loaded, image())
    assert tuple(loaded.pretrained_cfg["mean"]) == (0.1, 0.2, 0.3)  # type: ignore[arg-type, index]
    assert svd.describe_file(tmp_path / "net.safetensors")["arguments"] == {"num_classes": 5}


@pytest.mark.parametrize("text", ["[" * 200_000, "1" * 6000])
def test_json_that_python_will_not_read_is_a_damaged_file(tmp_path: Path, text: str) -> None:
    files.save_tensors({"a": torch.ones(1)}, tmp_path / "net.safetensors", {FORMAT: text})
    with pytest.raises(FileFormatError, match="its header is damaged"):
        load(tmp_path / "net.safetensors")
    (tmp_path / "any.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"any\.json: not a whole JSON file"):
        files.read_json(tmp_path / "any.json")


def test_rows_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"a": 1}\n\xff\xfe\n{"a": 2}\n')
    with pytest.raises(FileFormatError, match=r"metrics\.jsonl: line 2 is not JSON"):
        files.read_rows(tmp_path / "metrics.jsonl")
    with pytest.raises(FileFormatError, match="cannot be read"):
        files.read_rows(tmp_path)


def test_arguments_that_no_file_can_hold_are_named(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"act_layer": nn.ReLU}
    model = timm.create_model("test_resnet", **arguments)
    with pytest.raises(SettingError, match=r"arguments: act_layer = .*ReLU.* cannot be written"):
        save(model, tmp_path / "net.safetensors", arguments=arguments)
    assert not list(tmp_path.iterdir())


def test_what_a_kill_leaves_of_files_and_folders_is_deleted(tmp_path: Path) -> None:
    """A kill while others make a file leaves the folder that they make it in."""
    for path in (tmp_path / "net.safetensors", tmp_path / "pictures" / "net.onnx"):
        with files.replace_when_whole(path) as unfinished:
            unfinished.write_bytes(b"half")
            shutil.copytree(unfinished.parent, tmp_path / "left")
        path.unlink()
        shutil.move(tmp_path / "left", unfinished.parent)  # all that a kill would have left
    (tmp_path / f".metrics.jsonl.1{files.PARTIAL_SUFFIX}").write_bytes(b"half")
    files.delete_partial_files(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list(tmp_path.iterdir()) == [tmp_path / "pictures"]
