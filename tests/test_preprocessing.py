"""Preprocessing is the network's: from its pre-training through the run into every file, and to a photo's class."""

import contextlib
import copy
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import timm.data
import torch
from PIL import Image
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd import cli, models
from nni_sparsevd.data import load_data
from nni_sparsevd.errors import DataError, FileFormatError, ModelError, SettingError
from nni_sparsevd.export import export
from nni_sparsevd.files import save_tensors
from nni_sparsevd.prediction import predict_photos
from nni_sparsevd.preprocessing import Preprocessing, read_values, set_values_
from nni_sparsevd.recipe import DataSettings, ModelSettings

NAME = "test_resnet"
CLASSES = ("blue", "red")
TOLD = {"input_size": [3, 24, 24], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "label_names": list(CLASSES)}


def draw_photo(label: int, number: int) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 100, (30, 40, 3), dtype=np.uint8)
    pixels[..., 2 if label == 0 else 0] += 150
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("newcomer") / "photos"
    for part, count in (("train", 20), ("val", 4)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                draw_photo(label, number).save(root / part / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights for 1,000 classes, as timm has them."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save({"state_dict": timm.create_model(NAME).state_dict()}, path)
    return path


def find_command(name: str) -> list[str]:
    """A command of docs/photos.md, without the name of the program."""
    page = (Path(__file__).parents[1] / "docs" / "photos.md").read_text().replace("\\\n", " ")
    (line,) = [line for line in page.splitlines() if line.startswith(f"nni-sparsevd {name} ")]
    root = Path(__file__).parents[1]
    return [str(root / word) if word.startswith("examples/") else word for word in shlex.split(line)[1:]]


@pytest.fixture(scope="module")
def run(photos: Path, weights: Path) -> Path:
    """The newcomer's run of docs/photos.md with a network that is small, and one photo that is none."""
    bad = photos / "train" / "red" / "bad.png"
    bad.write_text("no photo")
    flags = [
        f"--model.name={NAME}",
        "--model.pretrained=false",
        f"--model.checkpoint={weights}",
        "--data.skip_bad=true",
    ]
    flags += [
        "--data.image_size=24",
        "--data.batch_size=12",
        "--data.mixup=0.2",
        "--dense.epochs=1",
        "--sparse.epochs=11",
        "--budget.macs=0.8",
        "--budget.cuts=2",
    ]
    with contextlib.chdir(photos.parent):
        assert cli.main([*find_command("compress"), *flags, "--finetune.epochs=1"]) == 0
        bad.unlink()
        return Path("runs", "ants").resolve()


def test_the_report_counts_the_photos_that_were_passed_over(run: Path) -> None:
    for name in ("report.html", "report.md"):
        page = (run / name).read_text()
        assert "1 photo was passed over" in page and "bad.png" in page, name
    assert json.loads((run / "result.json").read_text())["images"] == {"train": 36, "holdout": 4, "test": 8}


def test_the_network_of_a_run_says_how_its_inputs_are_made(run: Path) -> None:
    small = svd.load(run / "small.safetensors")
    timms = timm.get_pretrained_cfg(NAME)
    resolved = timm.data.resolve_data_config(model=small)
    assert resolved["input_size"] == (3, 24, 24)
    for key in ("mean", "std", "interpolation", "crop_pct"):
        assert resolved[key] == getattr(timms, key), key
    written = json.loads((run / "preprocessing.json").read_text())
    assert written["label_names"] == list(CLASSES) and written["mean"] == list(timms.mean)
    assert small.pretrained_cfg["label_names"] == CLASSES and small.pretrained_cfg["num_classes"] == 2


def test_predictions_are_those_of_timms_own_pipeline(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = sorted((photos / "val").rglob("*.png"))
    assert cli.main([find_command("predict")[0], str(run), *map(str, paths)]) == 0
    lines = capsys.readouterr().out.splitlines()
    small = svd.load(run / "small.safetensors")
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=small))
    for path, line in zip(paths, lines, strict=True):
        with torch.no_grad():
            inputs: Tensor = transform(Image.open(path))
            shares = small(inputs[None]).softmax(1)[0]
        assert line == f"{path}: {CLASSES[int(shares.argmax())]} {100 * float(shares.max()):.1f} %"


def test_an_exported_file_says_it_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 2)).eval()
    set_values_(model, TOLD)
    export(model, tmp_path / "small.onnx", torch.zeros(1, 3, 24, 24))
    assert read_values(svd.load(tmp_path / "small.onnx")) == TOLD
    photo = draw_photo(0, 5).resize((24, 24))
    photo.save(tmp_path / "photo.png")
    mean, std = (torch.tensor(TOLD[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        probability, label = model(((pixels - mean) / std)[None]).softmax(1)[0].max(0)
    (predicted,) = predict_photos(tmp_path / "small.onnx", [tmp_path / "photo.png"])
    assert (predicted.label, round(predicted.probability, 4)) == (CLASSES[int(label)], round(float(probability), 4))


def test_other_formats_have_a_file_beside(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    set_values_(model, {"input_size": [3, 2, 2]})
    export(model, tmp_path / "small.pt2", torch.zeros(2, 3, 2, 2))
    assert json.loads((tmp_path / "small.pt2.json").read_text()) == {"input_size": [3, 2, 2]}
    # What was said of an earlier network is not said of a later one.
    export(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), tmp_path / "small.pt2", torch.zeros(2, 3, 2, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["small.pt2"]


def test_what_a_network_says_is_checked_before_it_is_written(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    for mean in (0.5, torch.zeros(3)):
        model.pretrained_cfg = {"mean": mean}  # type: ignore[assignment]
        with pytest.raises(SettingError, match="preprocessing: mean cannot be"):
            svd.save(model, tmp_path / "model.safetensors")
        with pytest.raises(SettingError, match="preprocessing: mean cannot be"):
            export(model, tmp_path / "model.pt2", torch.zeros(1, 3))
    assert not list(tmp_path.iterdir())


def test_a_photo_is_classified_in_the_type_of_the_network(tmp_path: Path) -> None:
    draw_photo(0, 0).save(tmp_path / "photo.png")
    labels = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        model = timm.create_model(NAME, num_classes=2).to(dtype)
        svd.save(model, tmp_path / "model.safetensors", arguments={"num_classes": 2}, preprocessing=TOLD)
        (found,) = predict_photos(tmp_path / "model.safetensors", [tmp_path / "photo.png"])
        labels.append(found.label)
    assert labels[0] == labels[1]
    names = {"label_names": ["one", "two", "three"]}
    svd.save(model, tmp_path / "model.safetensors", arguments={"num_classes": 2}, preprocessing=TOLD | names)
    with pytest.raises(SettingError, match="label_names has 3 names for 2 classes"):
        predict_photos(tmp_path / "model.safetensors", [tmp_path / "photo.png"])


@pytest.mark.parametrize("coding", [None, "exact"])
def test_files_keep_what_a_network_was_told(tmp_path: Path, coding: None) -> None:
    model = timm.create_model(NAME, num_classes=2)
    assert "mean" not in svd_header(model, tmp_path)["preprocessing"]
    set_values_(model, TOLD)
    svd.save(copy.deepcopy(model), tmp_path / "model.safetensors", arguments={"num_classes": 2}, coding=coding)
    values = read_values(svd.load(tmp_path / "model.safetensors"))
    assert {key: values[key] for key in TOLD} == TOLD
    svd.save_folder(model, tmp_path / "folder", arguments={"num_classes": 2}, preprocessing={"crop_pct": 0.5})
    assert read_values(svd.load(tmp_path / "folder"))["crop_pct"] == 0.5


def svd_header(model: nn.Module, folder: Path) -> dict[str, dict[str, object]]:
    svd.save(model, folder / "header.safetensors", arguments={"num_classes": 2})
    return svd.describe_file(folder / "header.safetensors")


@pytest.mark.parametrize(
    "bad",
    [
        {"mean": "half"},
        {"input_size": [3, 24]},
        {"crop_pct": True},
        {"hook": "os.system"},
        [1],
        {"std": [[1]]},
        {"std": [0.0, 1, 1]},
        {"mean": [float("nan"), 1, 1]},
        {"input_size": [3, 0, 24]},
        {"crop_pct": 0},
        {"interpolation": "bicubc"},
        {"crop_mode": "middle"},
        TOLD | {"mean": [0.5, 0.5]},
    ],
)
def test_what_a_file_says_is_checked(bad: object) -> None:
    with pytest.raises(SettingError, match="preprocessing"):
        Preprocessing.from_values(bad)  # type: ignore[arg-type]


def test_each_setting_counts_more_than_the_pre_training(photos: Path) -> None:
    requirements = models.find_requirements(ModelSettings(name=NAME, pretrained=True))
    settings = DataSettings(train=photos, mean=(0.5,), crop_pct=0.75, interpolation="bilinear", image_size=16)
    made = load_data(settings, requirements=requirements).preprocessing
    assert made == Preprocessing(
        (3, 16, 16), (0.5,) * 3, timm.get_pretrained_cfg(NAME).std, "bilinear", 0.75, label_names=CLASSES
    )


def test_only_a_network_that_starts_from_nothing_gets_the_datas_own_statistics(photos: Path) -> None:
    made = load_data(DataSettings(train=photos), requirements=models.find_requirements(ModelSettings(name=NAME)))
    images = made.train.images.double() / 255
    torch.testing.assert_close(torch.tensor(made.preprocessing.mean), images.mean((0, 2, 3)).float())
    assert made.preprocessing.crop_pct == 1 and made.preprocessing.input_size == (3, 30, 40)


def test_a_classifier_for_other_classes_is_made_anew_and_said(
    weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = models.create_model(ModelSettings(name=NAME, checkpoint=weights), 2, 3, 24)
    stored = torch.load(weights, weights_only=True)["state_dict"]
    for name, value in model.state_dict().items():
        assert value.shape[0] == 2 if name.startswith("fc.") else torch.equal(value, stored[name])
    said = capsys.readouterr().err
    assert "fc.weight" in said and "anew" in said
    # Nearly all classes are as likely at first: a wild guess would spoil the features in the first steps.
    probabilities = model(torch.randn(4, 3, 24, 24)).softmax(1)
    torch.testing.assert_close(probabilities, torch.full((4, 2), 0.5), atol=0.1, rtol=0)


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_one_says_that_a_classifier_is_made_anew(
    weights: Path, rank: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_rank", lambda: rank)
    models.create_model(ModelSettings(name=NAME, checkpoint=weights), 2, 3, 24)
    assert capsys.readouterr().err.count("anew") == (rank == 0)


def test_a_classifier_that_timm_leaves_out_starts_small_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.creation, "build_model", lambda name, arguments, _: timm.create_model(name, **arguments))
    weight = models.create_model(ModelSettings(name=NAME, pretrained=True), 2, 3, 24).get_parameter("fc.weight")
    assert 0 < weight.abs().max() < 0.06  # six standard deviations of 0.01


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "rest": Bomb(tmp_path / "exploded")}, tmp_path / "weights.pth")
    with pytest.raises(FileFormatError, match=r"weights\.pth.*safetensors"):
        models.read_weights(tmp_path / "weights.pth")
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_network_are_found_out_before_a_photo_is_decoded(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tensors({"conv1.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    monkeypatch.setattr("nni_sparsevd.data.splits.decode_photo", None)
    flags = [f"--model.name={NAME}", f"--model.checkpoint={tmp_path / 'other.safetensors'}", f"--data.train={photos}"]
    assert cli.main(["compress", f"--out={tmp_path / 'run'}", *flags]) == 1
    settings = ModelSettings(name=NAME, checkpoint=tmp_path / "other.safetensors")
    requirements = models.find_requirements(settings)
    with pytest.raises(ModelError, match="conv1"):
        models.check_checkpoint(settings, 24, requirements)


def test_a_photo_that_is_not_there_is_named(run: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        predict_photos(run, [Path("nowhere.jpg")])
