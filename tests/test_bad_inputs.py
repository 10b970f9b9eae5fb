"""Bad input ends with one clear message that names the thing, an exit code that is not 0, and nothing lost."""

import errno
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from nni_sparsevd import cli, convert, files, recipe, storage
from nni_sparsevd.errors import FileFormatError, MaskError, SettingError, SparseVDError
from nni_sparsevd.masks import Masks

BASE = ["compress", "--model.name=lenet_300_100", "--data.limit=200", "--sparse.epochs=1", "--sparse.warmup_to=9"]

# what is wrong -> flags (later ones win), words that the message must hold
TABLE = {
    "unknown model": (["--model.name=resnet19"], ["model.name", "resnet19", "resnet18"]),
    "model argument it does not take": (["--model.name=resnet18", "--model.arguments.foo=3"], ["resnet18", "foo"]),
    "network too deep for the images": (["--model.name=lenet5_caffe"], ["lenet5_caffe", "16", "8"]),
    "misspelt flag": (["--sparse.epocs=3"], ["--sparse.epocs", "--sparse.epochs"]),
    "wrong type": (["--sparse.epochs=three"], ["sparse.epochs", "integer", "three"]),
    "negative threshold": (["--masks.threshold=-1"], ["masks.threshold", "-1", "greater"]),
    "ratio above one": (["--masks.ratio=1.5"], ["masks.ratio", "1.5", "less than 1"]),
    "not a number": (["--sparse.learning_rate=nan"], ["sparse.learning_rate", "nan"]),
    "unknown prior": (["--posterior.prior=gauss"], ["posterior.prior", "gauss", "log_uniform"]),
    "unknown layer": (["--posterior.include=[conv9]"], ["conv9", "fc1"]),
    "unknown optimizer": (["--dense.optimizer=foo"], ["foo", "adam"]),
    "data that is not there": (["--data.name=torch/mnist", "--data.train=/nowhere"], ["data.train", "/nowhere"]),
    "data without a place": (["--data.name=torch/mnist"], ["data.train", "torch/mnist"]),
    "recipe that is not there": (["--recipe=/nowhere.toml"], ["/nowhere.toml"]),
    "parts that are scaled": (["--shard=true", "--precision=fp16"], ["shard", "fp16", "bf16"]),
    "overwrite and resume": (["--overwrite", "--resume"], ["--overwrite", "--resume"]),
    "nothing to resume": (["--resume"], ["nothing to resume"]),
    "loss not finite": (["--sparse.learning_rate=1e30"], ["no longer finite", "sparse.learning_rate", "checkpoint"]),
    "everything removed at once": (
        [
            "--sparse.warmup_to=0",
            "--sparse.epochs=30",
            "--data.batch_size=5",
            "--sparse.learning_rate=0.02",
            "--sparse.kl_coefficient=300",
        ],
        ["collapse", "sparse.warmup_to", "dense.epochs"],
    ),
}


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    try:
        code = cli.main(arguments)
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    return code, capsys.readouterr().err


@pytest.mark.parametrize("what", TABLE)
def test_flags(what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags, words = TABLE[what]
    code, said = run([*BASE, f"--out={tmp_path / 'run'}", *flags], capsys)
    assert code in (1, 2)
    assert "Traceback" not in said
    for word in words:
        assert word in said, said


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_one_prints_an_error(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others leave theirs for torchrun's report: it may have met them alone."""
    report = tmp_path / "error.json"
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(report))
    for command in (["compress", "--outt=x"], ["report", str(tmp_path / "nowhere")]):
        code, said = run(command, capsys)
        assert code in (1, 2)
        assert said.count("nni-sparsevd: ") == (rank == 0)
        assert report.exists() == (rank == 1)
    assert rank == 0 or "result.json: no such file" in json.loads(report.read_text())["message"]["message"]
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    assert run(["compress", "--outt=x"], capsys)[1].count("did you mean --out?") == 1


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_one_prints_an_interruption(
    rank: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr("nni_sparsevd.report.write_report", interrupt)
    code, said = run(["report", str(tmp_path)], capsys)
    assert code == 130
    assert said.count("stopped") == (rank == 0)
    assert not (tmp_path / "error.json").exists()


def test_an_output_that_nobody_reads_is_no_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `nni-sparsevd reproduce | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        code, said = run(["reproduce"], capsys)
        assert (code, said) == (141, "")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code in (0, None)
    assert capsys.readouterr().out.split() == ["nni-sparsevd", version("nni_sparsevd")]


def test_a_good_call_passes_the_same_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*BASE, f"--out={tmp_path / 'run'}"], capsys) == (0, "")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "typo.toml",
            "[sparse]\nepocs = 3\n",
            ["typo.toml", "sparse.epocs: there is no such key", "did you mean sparse.epochs?", "sparse has the keys: "],
        ),
        ("type.yaml", "sparse: {epochs: many}\n", ["type.yaml", "sparse.epochs", "many"]),
        ("broken.toml", "model = [", ["broken.toml"]),
        ("list.yaml", "- 1\n", ["list.yaml", "list"]),
        ("recipe.ini", "", [".toml"]),
        (
            "pair.toml",
            "posterior.variance = 'channel'\nfinetune.variational = true\n",
            ["pair.toml: finetune.variational"],
        ),
    ],
)
def test_recipe_files(name: str, text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SettingError) as caught:
        recipe.read_recipe(tmp_path / name)
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 400


def test_empty_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images" / "cat").mkdir(parents=True)
    flags = ["--data.name=", f"--data.train={tmp_path / 'images'}", f"--data.test={tmp_path / 'images'}"]
    code, said = run([*BASE, f"--out={tmp_path / 'run'}", *flags], capsys)
    assert code == 1
    assert str(tmp_path / "images") in said
    assert not (tmp_path / "run").exists()


def test_used_folder_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for flag in ([], ["--overwrite"]):
        code, said = run([*BASE, f"--out={tmp_path}", *flag], capsys)
        assert code == 2
        assert str(tmp_path) in said
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done") / "run"
    assert cli.main([*BASE, f"--out={folder}"]) == 0
    return folder


def copied(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "run"))


def test_a_run_is_overwritten_only_by_one_that_can_begin(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(done, tmp_path)
    (folder / "mine.txt").write_text("notes")
    code, said = run(
        [*BASE, f"--out={folder}", "--overwrite", "--data.name=", "--data.train=gone", "--data.test=gone"], capsys
    )
    assert code == 1
    assert (folder / "mine.txt").exists() and (folder / "small.safetensors").exists(), said
    code, said = run([*BASE, f"--out={folder}", "--overwrite"], capsys)
    assert code == 0, said
    assert not (folder / "mine.txt").exists() and (folder / "small.safetensors").exists()


def test_truncated_network(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = copied(done, tmp_path) / "small.safetensors"
    small.write_bytes(small.read_bytes()[:-100])
    code, said = run(["check", str(small.parent)], capsys)
    assert code == 1
    assert "small.safetensors" in said
    with pytest.raises(FileFormatError, match=r"small\.safetensors"):
        storage.load(small)


def test_corrupt_checkpoint(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(done, tmp_path)
    (folder / "checkpoint.safetensors").write_bytes(b"\x00" * 50)
    code, said = run([*BASE, f"--out={folder}", "--resume"], capsys)
    assert code == 1
    assert "checkpoint.safetensors" in said


def test_pickle_offered_as_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.safetensors"
    torch.save({"fc1.weight": torch.zeros(2)}, path)
    code, said = run([*BASE, f"--out={tmp_path / 'run'}", f"--model.checkpoint={path}"], capsys)
    assert code == 1
    assert "weights.safetensors" in said
    assert "pickle" in said


def test_weights_of_another_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.safetensors"
    files.save_tensors({"fc1.weight": torch.zeros(2, 2)}, path)
    code, said = run([*BASE, f"--out={tmp_path / 'run'}", f"--model.checkpoint={path}"], capsys)
    assert code == 1
    assert "fc1.weight" in said
    assert "fc2.weight" in said


def test_full_disk_keeps_the_last_checkpoint(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(done, tmp_path)
    before = (folder / "small.safetensors").read_bytes()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    code, said = run([*BASE, f"--out={folder}", "--resume"], capsys)
    assert code == 1
    assert "No space left" in said
    assert (folder / "small.safetensors").read_bytes() == before
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run([*BASE, "--out=/proc/run"], capsys)
    assert code == 1
    assert "/proc/run" in said


@pytest.mark.parametrize("command", ["report", "check"])
def test_commands_on_something_that_is_no_run(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run([command, str(tmp_path)], capsys)
    assert code == 1
    assert str(tmp_path) in said


def test_damaged_result(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copied(done, tmp_path)
    values = json.loads((folder / "result.json").read_text())
    del values["size"]
    (folder / "result.json").write_text(json.dumps(values))
    code, said = run(["report", str(folder)], capsys)
    assert code == 1
    assert "result.json" in said
    assert "size" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"front": None, "input": None}, ["lacks front, input"]),
        ({"front": 3}, ["front is 3"]),
        ({"front": [{}, {}]}, ["front is"]),
        ([], ["holds a list"]),
    ],
    ids=["keys", "front", "row", "kind"],
)
@pytest.mark.parametrize("command", ["check", "measure", "export"])
def test_a_damaged_result_is_named_by_every_command(
    command: str, change: Any, words: list[str], done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`None` takes a key out."""
    folder = copied(done, tmp_path)
    values: Any = change
    if isinstance(change, dict):
        values = json.loads((folder / "result.json").read_text()) | change
        values = {key: value for key, value in values.items() if key not in change or value is not None}
    (folder / "result.json").write_text(json.dumps(values))
    flags = [f"--to={tmp_path / 'small.pt2'}"] if command == "export" else []
    code, said = run([command, str(folder), *flags], capsys)
    assert code == 1
    assert "result.json" in said
    for word in words:
        assert word in said, said


@pytest.mark.parametrize(
    ("masks", "words"),
    [
        ({"conv9": {"weight": torch.ones(2)}}, ["conv9"]),
        ({"fc1": {"weight": torch.ones(3, 3)}}, ["fc1.weight", "(3, 3)", "(300, 64)"]),
        ({"fc1": {"weight": torch.full((300, 64), 0.5)}}, ["fc1.weight", "0 and 1"]),
        ({"fc2": {"weight": torch.zeros(100, 300)}}, ["fc2.weight", "whole layer", "allow_empty"]),
    ],
    ids=["unknown module", "wrong shape", "not a mask", "empties a layer"],
)
def test_masks(masks: Masks, words: list[str], done: Path) -> None:
    model = storage.load(done / "masked.safetensors")
    with pytest.raises(MaskError) as caught:
        convert.bake_(model, masks)
    for word in words:
        assert word in str(caught.value)


def test_every_own_error_is_one_kind() -> None:
    from nni_sparsevd import errors

    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert all(issubclass(kind, SparseVDError | errors.SparseVDWarning) for kind in kinds)
