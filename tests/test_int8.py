"""Files of integers: what is in them, how near they are, and how they are measured."""

import copy
import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from integers import run_integers
from test_export import IMAGE, networks
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd import cli
from nni_sparsevd.data import DataSets, load_data
from nni_sparsevd.errors import DataError, ModelError, SettingError
from nni_sparsevd.export import FORMATS, Quantization, export, quantization
from nni_sparsevd.preprocessing import set_values_
from nni_sparsevd.recipe import read_recipe
from nni_sparsevd.report import write_report
from nni_sparsevd.results import measure_run, run_export, runtimes
from nni_sparsevd.results.run_data import choose_calibration, read_run_data
from nni_sparsevd.results.runtime_scores import RuntimeScore

ONNX = pytest.mark.skipif(bool(FORMATS[".onnx"].missing), reason="ONNX is not installed")
CALIBRATION_ROWS = torch.randn(40, 24, generator=torch.Generator().manual_seed(2))
CALIBRATION = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def read_weights(path: Path) -> dict[str, Any]:
    """Operator that multiplies -> (integers, scales) of its weight, from a file of nodes that round and come back."""
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(path).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    weights = {}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            back = [makers[name] for name in node.input[:2]]
            assert [maker.op_type for maker in back] == ["DequantizeLinear"] * 2
            assert makers[back[0].input[0]].op_type == "QuantizeLinear"
            weights[f"{node.op_type} {len(weights)}"] = [values[name] for name in back[1].input]
    return weights


@ONNX
def test_weights_are_rounded_to_the_nearest_of_their_channel(tmp_path: Path) -> None:
    network = networks()["shrunk"]
    set_values_(network, {"mean": (0.5,), "label_names": ("ant", "bee")})
    path = tmp_path / "net.onnx"
    compared = export(network, path, IMAGE, quantization=Quantization(CALIBRATION))
    weights = read_weights(path)
    layers = [m for m in svd.fuse(network, IMAGE).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weights) == len(layers) == 4
    for layer, (integers, scales, zeros) in zip(layers, weights.values(), strict=True):
        weight = layer.weight.detach().numpy()
        assert integers.dtype == np.int8 and scales.shape == (len(weight),) and not zeros.any()
        scales = scales.reshape(-1, *[1] * (weight.ndim - 1))
        integers = integers if integers.shape == weight.shape else integers.T
        assert np.all(np.abs(weight - integers * scales) <= 0.501 * scales + 1e-7)
    assert compared.format == "ONNX int8" and compared.agreement is not None and compared.agreement > 0.8
    assert compared.ok and compared.bytes < export(network, tmp_path / "float.onnx", IMAGE).bytes / 1.3
    loaded = svd.load(path)
    assert loaded.pretrained_cfg["label_names"] == ("ant", "bee")
    assert loaded(CALIBRATION[:3]).dtype == torch.float32
    export(network, tmp_path / "again.onnx", IMAGE, quantization=Quantization(CALIBRATION.clone()))
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again.onnx", "float.onnx", "net.onnx"]


@ONNX
@pytest.mark.parametrize("processor", ["AVX2", "AVX512"])
def test_a_file_that_is_off_is_not_written_and_the_processor_may_be_the_reason(
    processor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    monkeypatch.setattr(quantization, "TOLERANCE", 0.0)
    with pytest.raises(ModelError, match="computes something else than Linear: ONNX int8") as caught:
        export(nn.Linear(24, 6), tmp_path / "net.onnx", torch.randn(1, 24), quantization=Quantization(CALIBRATION_ROWS))
    assert ("try it on another one" in str(caught.value)) == (processor == "AVX2")
    assert not list(tmp_path.iterdir())


@ONNX
def test_a_linear_layer_is_off_by_no_more_than_its_scales_allow(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    torch.manual_seed(0)
    layer, inputs = nn.Linear(24, 6), torch.randn(200, 24)
    export(layer, tmp_path / "net.onnx", inputs[:1], quantization=Quantization(inputs))
    graph = onnx.load(tmp_path / "net.onnx").graph
    values = {tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}
    steps = [values[node.input[1]].double() for node in graph.node if node.op_type == "QuantizeLinear"]
    ((_, weight_scales, _),) = read_weights(tmp_path / "net.onnx").values()
    input_step, output_step = steps[0], steps[-1]
    weight_step = torch.from_numpy(weight_scales.copy()).double()
    with torch.no_grad():
        difference = (run_integers(tmp_path / "net.onnx", inputs) - layer(inputs)).double().abs()
    # Half a step of each input times its weight, half a step of each weight times its input, and of output and bias.
    from_inputs = 0.5 * input_step * layer.weight.detach().double().abs().sum(1)
    from_weights = 0.5 * weight_step * (inputs.double().abs() + 0.5 * input_step).sum(1, keepdim=True)
    bound = from_inputs + from_weights + 0.5 * output_step + input_step * weight_step
    assert bool((difference <= 1.001 * bound).all())
    assert float(difference.max()) > 0.5 * float(output_step.min())  # it is a file of integers


def with_int8(suffix: str) -> Any:
    known = FORMATS[suffix]
    missing = bool(known.list_missing(int8=True))
    return pytest.param(suffix, marks=pytest.mark.skipif(missing, reason=f"{known.title} or its int8 is not installed"))


@pytest.mark.parametrize(
    "suffix", [with_int8(suffix) for suffix, known in FORMATS.items() if known.quantizer is not None]
)
def test_a_clamp_takes_no_steps_from_the_values_that_it_leaves(suffix: str, tmp_path: Path) -> None:
    """Layer and clamp are rounded as one: the step of [0, 6], not that of the hundred before the clamp."""
    layer = nn.Conv2d(3, 3, 1)
    layer.weight.data = torch.eye(3)[..., None, None]
    layer.bias.data = torch.tensor([-50.0, 50.0, 3.0])
    network = nn.Sequential(layer, nn.ReLU6()).eval()
    inputs = 2 * torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0)) - 1
    path = tmp_path / f"net{suffix}"
    compared = export(network, path, inputs[:1], quantization=Quantization(inputs))
    assert compared.ok and compared.format == f"{FORMATS[suffix].title} int8" and compared.agreement == 1
    run = svd.load(path)
    with torch.no_grad():
        difference = max(float((run(one) - network(one)).abs().max()) for one in inputs.split(1))
    assert 1e-4 < difference <= 0.5 * 6 / 255 + 2 / 255 + 1e-3


@pytest.mark.parametrize("suffix", [with_int8(suffix) for suffix in (".pte", ".tflite")])
def test_other_runtimes_run_integers(suffix: str, tmp_path: Path) -> None:
    network = networks()["shrunk"]
    set_values_(network, {"mean": (0.5,), "label_names": ("ant", "bee")})
    path = tmp_path / f"net{suffix}"
    compared = export(network, path, IMAGE, quantization=Quantization(CALIBRATION))
    assert compared.ok and compared.batches == (1,) and compared.max_rel < 0.2
    loaded = svd.load(path)
    assert loaded.pretrained_cfg["label_names"] == ("ant", "bee")
    assert float((loaded(IMAGE) - network(IMAGE)).abs().max()) <= 0.2 * float(network(CALIBRATION).abs().max())
    assert {file.name for file in tmp_path.iterdir()} == {f"net{suffix}", f"net{suffix}.json"}


def test_what_has_no_integers_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: Any) -> None:
    model, quantization = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)), Quantization(CALIBRATION)
    with pytest.raises(SettingError, match=r"torch\.export has no int8 here; \.onnx"):
        export(model, tmp_path / "net.pt2", IMAGE, quantization=quantization)
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    with pytest.raises(SettingError, match=r"ONNX needs onnxruntime: pip install 'nni_sparsevd\[export\]'"):
        export(model, tmp_path / "net.onnx", IMAGE, quantization=quantization)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


@ONNX
@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (torch.zeros(0, 3, 32, 32), "0 inputs, at least 1 are needed"),
        (torch.tensor(1.0), "0 inputs, at least 1 are needed"),
        (torch.zeros(4, 3, 16, 16), r"inputs of \(3, 16, 16\), torch.float32; the network takes \(3, 32, 32\)"),
        (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), r"torch.uint8; the network takes \(3, 32, 32\), torch.float32"),
        (torch.full((4, 3, 32, 32), torch.nan), "NaN or infinite"),
    ],
)
def test_calibration_inputs_that_do_not_fit(calibration: Tensor, message: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5))
    with pytest.raises(SettingError, match=rf"quantization\.calibration: .*{message}"):
        export(model, tmp_path / "net.onnx", IMAGE, quantization=Quantization(calibration))
    assert not list(tmp_path.iterdir())


@ONNX
def test_networks_that_have_no_integers(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    half = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)).half()
    with pytest.raises(ModelError, match=r"in float32, Sequential is in torch\.float16: model\.float\(\)"):
        export(half, tmp_path / "net.onnx", IMAGE.half(), quantization=Quantization(CALIBRATION.half()))
    with pytest.raises(ModelError, match="networks of one input; Two takes 2"):
        export(Two(), tmp_path / "net.onnx", (IMAGE, IMAGE), quantization=Quantization(CALIBRATION))
    assert not list(tmp_path.iterdir())


# Run folders.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "digits"
    sizes = ["--model.name=lenet_300_100", "--data.limit=600", "--dense.epochs=3", "--sparse.epochs=1"]
    assert cli.main(["compress", *sizes, "--masks.ratio=0.3", f"--out={run}"]) == 0
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_the_photos_of_a_run_are_those_that_it_was_trained_on(run: Path) -> None:
    recipe = read_recipe(run / "recipe.toml")
    first, again = load_data(recipe.data, None, recipe.seed), read_run_data(run)
    for split in ("train", "holdout", "test"):
        expected, found = getattr(first, split), getattr(again, split)
        assert torch.equal(found.read(range(len(found))), expected.images)
        assert torch.equal(found.labels, expected.labels)
    chosen = choose_calibration(again, 20, seed=3)
    assert torch.equal(chosen, choose_calibration(first, 20, seed=3))
    assert not torch.equal(chosen, choose_calibration(first, 20, seed=4))
    everything = {tuple(row) for row in first.normalize(first.train.images).flatten(1).tolist()}
    assert {tuple(row) for row in chosen.flatten(1).tolist()} <= everything
    values = json.loads((run / "preprocessing.json").read_text())
    (run / "preprocessing.json").write_text(json.dumps({**values, "label_names": ["ant", "bee"]}))
    with pytest.raises(DataError, match=r"its photos have changed since the run: label_names was \['ant', 'bee'\]"):
        read_run_data(run)


@ONNX
def test_export_and_measure_a_run(run: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "net.onnx"
    assert cli.main(["export", str(run), f"--to={path}", "--int8", "--calibration=50"]) == 0
    printed = capsys.readouterr().out
    row = json.loads((run / "exports.json").read_text())["net.onnx"]["test"]
    data = load_data(read_recipe(run / "recipe.toml").data)
    inputs, labels = data.normalize(data.test.images), data.test.labels
    small, file = svd.load(run / "small.safetensors"), svd.load(path)
    with torch.no_grad():
        answers, expected = file(inputs).argmax(1), small(inputs).argmax(1)
    assert row["images"] == len(labels) > 300
    assert row["accuracy"] == pytest.approx(float((answers == labels).float().mean()))
    assert row["float_accuracy"] == pytest.approx(float((expected == labels).float().mean()))
    assert row["agreement"] == pytest.approx(float((answers == expected).float().mean())) and row["agreement"] > 0.9
    assert f"{100 * row['agreement']:.2f} % as the float32 network names them" in printed
    rows = measure_run(run, ["test"], calibration=50)
    by_name = {(one["runtime"], one["network"], one["precision"]): one for one in rows}
    both = [("dense", "float32"), ("shrunk", "float32")]
    onnx = [*both, ("dense", "int8"), ("shrunk", "int8")]
    assert [key for key in by_name if key[0] in ("PyTorch", "ONNX Runtime")] == [
        *(("PyTorch", *key) for key in both),
        *(("ONNX Runtime", *key) for key in onnx),
    ]
    found = by_name["ONNX Runtime", "shrunk", "int8"]
    assert found["bytes"] == path.stat().st_size and found["accuracy"] == row["accuracy"]
    assert found["agreement"] == row["agreement"] < 1 == by_name["ONNX Runtime", "shrunk", "float32"]["agreement"]
    dense = by_name["ONNX Runtime", "dense", "float32"]
    assert found["times_faster"] == pytest.approx(dense["milliseconds"] / found["milliseconds"])
    assert dense["accuracy"] == json.loads((run / "result.json").read_text())["test"]["dense"]["accuracy"]
    pages = [(run / name).read_text() for name in ("report.md", "report.html")]
    for page in pages:
        assert f"{found['bytes']:,}" in page and f"{100 * found['accuracy']:.2f} %" in page
    assert all(what in pages[0] for what in json.loads((run / "runtimes.json").read_text())["passed_over"])


@ONNX
def test_a_loss_of_more_than_half_a_point_is_told_with_what_to_do(run: Path, monkeypatch: Any, capsys: Any) -> None:
    """What the files say is made up: of 500 photos float32 names 400 right, and int8 at first 398, then 397."""
    scores = {"int8": RuntimeScore(500, 398 / 500, 0.9), "float32": RuntimeScore(500, 0.8, 1.0)}
    for module in (run_export, runtimes):
        monkeypatch.setattr(
            module, "score_candidates", lambda candidates, *_: {key: scores[key.split()[-1]] for key in candidates}
        )
    command = ["export", str(run), f"--to={run / 'net.onnx'}", "--int8", "--calibration=50"]
    assert cli.main(command) == 0
    assert "loses" not in capsys.readouterr().out + (run / "report.md").read_text()
    scores["int8"] = RuntimeScore(500, 397 / 500, 0.9)
    assert cli.main(command) == 0
    assert "The file loses 0.60 points as int8, 3 of 500 test photos. Try more" in capsys.readouterr().out
    assert cli.main(["measure", str(run), "--calibration=50"]) == 0
    assert "dense in ONNX Runtime loses 0.60 points" in capsys.readouterr().out
    for name in ("report.md", "report.html"):
        page = (run / name).read_text()
        for file in ("net.onnx", "shrunk in ONNX Runtime"):
            assert f"{file} loses 0.60 points as int8, 3 of 500 test photos. Try more" in page
        assert page.count("tune the network for integers (quantize.aware=true;") == 2  # not the dense one
        assert "integers of eight bits" not in page
    assert cli.main(["compress", f"--out={run}", "--resume", "--quantize.aware=true", "--quantize.epochs=1"]) == 0
    assert "1 of tuning for integers of eight bits" in (run / "report.md").read_text()
    assert cli.main(command) == 0
    assert "otherwise, or tune it for longer (quantize.epochs); else" in capsys.readouterr().out


def test_integers_without_photos(run: Path, tmp_path: Path, capsys: Any) -> None:
    to = tmp_path / "files" / "net.onnx"
    assert cli.main(["export", str(run / "small.safetensors"), f"--to={to}", "--int8"]) == 2
    assert "is no run folder, so there are no photos" in capsys.readouterr().err
    assert cli.main(["export", str(run), f"--to={to.with_suffix('.pt2')}", "--int8"]) == 2
    assert "has no int8" in capsys.readouterr().err
    text = (run / "recipe.toml").read_text()
    assert "[data]\n" in text
    (run / "recipe.toml").write_text(text.replace("[data]\n", f'[data]\ntrain = "{tmp_path / "gone"}"\n'))
    assert cli.main(["export", str(run), f"--to={to}", "--int8"]) == 1
    assert "gone" in capsys.readouterr().err and not to.parent.exists()
    assert not (run / "exports.json").exists() and write_report(run).exists()


def test_the_network_is_left_as_it_was(tmp_path: Path) -> None:
    if FORMATS[".onnx"].missing:
        pytest.skip("ONNX is not installed")
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)).train()
    before = copy.deepcopy(network.state_dict())
    export(network, tmp_path / "net.onnx", IMAGE, quantization=Quantization(CALIBRATION))
    assert network.training and all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_runtime_that_lacks_a_package_of_its_own_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(*_: object, **__: object) -> None:
        raise SettingError("net.onnx: ONNX lacks sympy")

    monkeypatch.setattr(runtimes, "export", lack)
    monkeypatch.setattr(runtimes.FORMATS[".onnx"].__class__, "list_missing", lambda *_: [])
    networks, data = {"dense": nn.Linear(2, 2)}, cast(DataSets, None)
    material = runtimes._Material({}, networks, data, torch.zeros(2, 2), torch.zeros(1, 2))
    written = runtimes._write_files(".onnx", material, tmp_path)
    assert not written.candidates and set(written.passed_over.values()) == {"net.onnx: ONNX lacks sympy"}
