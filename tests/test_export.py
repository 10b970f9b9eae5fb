"""Files for other runtimes compute what the network computes, or are not there."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
from conftest import randomize_, thin_
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd import cli
from nni_sparsevd.errors import FileFormatError, ModelError, SettingError
from nni_sparsevd.export import FORMATS, SparseLinear, export, onnx, to_sparse_inference_, torch_export

IMAGE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
INSTALLED = [suffix for suffix, one in FORMATS.items() if not one.missing]


def there(suffix: str) -> object:
    missing = suffix not in INSTALLED
    return pytest.param(suffix, marks=pytest.mark.skipif(missing, reason=f"{FORMATS[suffix].title} is not installed"))


def networks() -> dict[str, nn.Module]:
    """A network with norms that matter, its masked twin, and what shrinking makes of that."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.Hardswish()]
    layers += [nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24), nn.ReLU()]
    layers += [nn.Conv2d(24, 40, 1), nn.BatchNorm2d(40), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    layers += [nn.Linear(40, 7)]
    dense = randomize_(nn.Sequential(*layers)).eval()
    masked = thin_(copy.deepcopy(dense))
    small, plan = svd.shrink(masked, IMAGE)
    assert plan.removed > 10
    return {"dense": dense, "masked": masked, "shrunk": small}


@pytest.fixture(scope="module", params=["dense", "masked", "shrunk"])
def network(request: pytest.FixtureRequest) -> nn.Module:
    return networks()[request.param]


@pytest.mark.parametrize("suffix", [there(suffix) for suffix in FORMATS])
def test_the_file_computes_what_the_network_does(network: nn.Module, suffix: str, tmp_path: Path) -> None:
    before = copy.deepcopy(network.state_dict())
    network.train()
    found = export(network, tmp_path / f"net{suffix}", IMAGE)
    assert found.ok and found.max_rel < 1e-4
    assert found.batches == ((1, 2, 3) if FORMATS[suffix].dynamic else (1,))
    assert found.bytes == (tmp_path / f"net{suffix}").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == [f"net{suffix}"]  # one file, and no rubbish
    assert network.training
    network.eval()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("suffix", [there(suffix) for suffix in FORMATS if suffix != ".pt2"])
def test_a_file_is_loaded_as_a_module_that_runs_it(suffix: str, tmp_path: Path) -> None:
    network = networks()["shrunk"]
    path = tmp_path / f"net{suffix}"
    export(network, path, IMAGE)
    loaded = svd.load(path)
    assert list(loaded.parameters()) == []
    with torch.no_grad():
        torch.testing.assert_close(loaded(IMAGE), network(IMAGE), rtol=1e-4, atol=1e-5)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\0" * 300):
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=f"net{suffix}: .* cannot open it"):
            svd.load(path)
    path.unlink()
    with pytest.raises(FileFormatError, match="no such file"):
        svd.load(path)


def test_what_can_run_code_is_not_opened(tmp_path: Path) -> None:
    export(networks()["dense"], tmp_path / "net.pt2", IMAGE)
    with pytest.raises(SettingError, match=r"torch\.export\.load"):
        svd.load(tmp_path / "net.pt2")


@pytest.mark.parametrize("suffix", [there(".onnx"), there(".pt2")])
def test_the_comparison_sees_a_file_of_another_network(suffix: str, tmp_path: Path, monkeypatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    room = {".onnx": onnx, ".pt2": torch_export}[suffix]
    write = room.write

    def another(network, *rest):
        twin = copy.deepcopy(network)
        with torch.no_grad():
            twin[1].weight[0, 0] += 1
        write(twin, *rest)

    monkeypatch.setattr(room, "write", another)
    path = tmp_path / f"net{suffix}"
    path.write_bytes(b"what was there before")
    with pytest.raises(ModelError, match=r"net\.\w+: the file computes something else than Sequential"):
        export(model, path, IMAGE)
    assert path.read_bytes() == b"what was there before"


@pytest.mark.parametrize("suffix", [there(".onnx"), there(".pt2")])
def test_a_fixed_batch_and_a_dynamic_one(suffix: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 30 * 30, 5))
    assert export(model, tmp_path / f"any{suffix}", IMAGE).batches == (1, 2, 3)
    fixed = export(model, tmp_path / f"fixed{suffix}", torch.cat([IMAGE, IMAGE]), dynamic_batch=False)
    assert fixed.batches == (2,)


def test_several_inputs_and_integers(tmp_path: Path) -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(10, 4), nn.Linear(8, 3)

        def forward(self, x: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            return self.out(torch.cat([x, self.words(words).mean(1)], 1))

    example = (torch.randn(1, 4), torch.randint(10, (1, 6)))
    assert export(Both(), tmp_path / "net.pt2", example).ok


def test_what_cannot_be_written_is_said_before_anything_is(tmp_path: Path, monkeypatch) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    with pytest.raises(SettingError, match=r"suffix '\.onxx'; there are \.onnx \(ONNX\)"):
        export(model, tmp_path / "net.onxx", IMAGE)
    with pytest.raises(ModelError, match="still has posteriors"):
        export(svd.sparsify_(copy.deepcopy(model)), tmp_path / "net.pt2", IMAGE)

    class Undecided(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ModelError, match=r"torch\.export cannot express Undecided"):
        export(Undecided(), tmp_path / "net.pt2", IMAGE)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else real(name))
    with pytest.raises(SettingError, match=r"ONNX needs onnxscript: pip install 'nni_sparsevd\[export\]'"):
        export(model, tmp_path / "net.onnx", IMAGE)
    assert not list(tmp_path.iterdir())


def test_from_the_command_line(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    sizes = ["--model.name=lenet_300_100", "--data.limit=300", "--dense.epochs=1", "--sparse.epochs=1"]
    assert cli.main(["compress", *sizes, "--masks.threshold=3", f"--out={run}"]) == 0
    assert "## Exports" not in (run / "report.md").read_text()
    assert cli.main(["export", str(run), f"--to={run / 'small.pt2'}"]) == 0
    assert "torch.export" in capsys.readouterr().out
    row = json.loads((run / "exports.json").read_text())["small.pt2"]
    assert row["ok"] and row["level"] is None
    assert "small.pt2" in (run / "report.md").read_text() and "small.pt2" in (run / "report.html").read_text()
    file = run / "small.safetensors"
    assert cli.main(["export", str(file), f"--to={tmp_path / 'one.pt2'}", "--input=[1,8,8]", "--fixed_batch"]) == 0
    assert "batches of 1" in capsys.readouterr().out
    assert cli.main(["export", str(file), f"--to={tmp_path / 'one.exe'}"]) == 2
    assert "'.exe'" in capsys.readouterr().err
    assert cli.main(["export", str(tmp_path), f"--to={tmp_path / 'one.pt2'}"]) == 1
    assert "has no model.safetensors" in capsys.readouterr().err
    svd.save_folder(svd.load(file), tmp_path / "hub")
    assert cli.main(["export", str(tmp_path / "hub"), f"--to={tmp_path / 'two.pt2'}", "--input=[1,8,8]"]) == 0
    assert "batches of 1, 2, 3" in capsys.readouterr().out
    assert cli.main(["export", str(file), "--too=x"]) == 2
    assert "did you mean --to?" in capsys.readouterr().err


# Sparse kernels.


def thinned(*layers: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.rand_like(parameter) < 0.2)
    return model


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(30, 20), (4, 30)),
        (nn.Linear(30, 20, bias=False), (4, 5, 30)),
        (nn.Conv2d(6, 8, 1), (3, 6, 5, 4)),
        (nn.Conv2d(6, 8, 1, bias=False), (1, 6, 5, 4)),
        (nn.Conv2d(6, 8, 1), (6, 6, 4)),
    ],
)
def test_a_sparse_layer_computes_what_the_dense_one_does(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model, x = thinned(layer), torch.randn(shape)
    expected = model(x)
    (choice,) = to_sparse_inference_(model, x, least=0.0)
    assert choice.converted and choice.zeros == pytest.approx(0.8, abs=0.1)
    assert isinstance(model[0], SparseLinear)
    torch.testing.assert_close(model(x), expected)
    assert model(x).is_contiguous()  # the network may go on with a view of it
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x), expected)


def test_what_is_not_faster_or_cannot_be_sparse_stays() -> None:
    convolutions = (nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 8, 1, stride=2))
    model = thinned(*convolutions, nn.Flatten(), nn.Linear(32, 5))
    kinds = [type(layer) for layer in model]
    (choice,) = to_sparse_inference_(model, torch.randn(1, 6, 6, 6), least=1e9)
    assert choice.layer == "4" and not choice.converted and choice.faster > 0
    assert [type(layer) for layer in model] == kinds
    with pytest.raises(ModelError, match="still has posteriors"):
        to_sparse_inference_(svd.sparsify_(nn.Sequential(nn.Linear(3, 3))), torch.randn(1, 3))


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(input=x)


def test_layers_that_the_sparse_kernel_does_not_know_stay() -> None:
    assert to_sparse_inference_(nn.Sequential(nn.Linear(4, 4)).half(), torch.randn(2, 4).half()) == []
    assert to_sparse_inference_(ByKeyword(), torch.randn(2, 4)) == []


def test_a_place_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.pt2").mkdir()
    for path in (tmp_path / "file" / "net.pt2", tmp_path / "folder.pt2"):
        with pytest.raises(FileFormatError, match=r"\.pt2: cannot be written"):
            export(nn.Linear(2, 2), path, torch.ones(1, 2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.pt2"]
