"""Ctrl-C on the command line saves, says how to go on, and loses nothing."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import Child

from nni_sparsevd.cli import main
from nni_sparsevd.files import load_tensors, read_rows

ARGUMENTS = [
    "--model.name=lenet_300_100", "--data.limit=600", "--data.batch_size=20", "--checkpoint_minutes=0.002",
    "--dense.epochs=3", "--sparse.epochs=6", "--sparse.kl_coefficient=0.1", "--finetune.epochs=3",
    "--data.augment=crop", "--posterior.estimator=local",
]  # fmt: skip


def compress_in_process(folder: Path, *more: str) -> Child:
    return Child(main, ["compress", "--out", str(folder), *ARGUMENTS, *more])


def finish(process: Child) -> None:
    code, output = process.wait()
    assert code == 0, output


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    finish(compress_in_process(folder))
    return folder


def rows_without_times(folder: Path) -> list[dict[str, object]]:
    rows = read_rows(folder / "metrics.jsonl")
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in rows]


def assert_same(left: Path, right: Path) -> None:
    for name in ("dense", "masks", "masked", "small"):
        first, _ = load_tensors(left / f"{name}.safetensors")
        second, _ = load_tensors(right / f"{name}.safetensors")
        assert first.keys() == second.keys()
        for key in first:
            assert torch.equal(first[key], second[key]), f"{name}: {key}"
    assert rows_without_times(left) == rows_without_times(right)
    assert json.loads((left / "curve.json").read_text()) == json.loads((right / "curve.json").read_text())


def test_interrupt_saves_and_says_how_to_go_on(uninterrupted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "stopped"
    command = [sys.executable, "-m", "nni_sparsevd", "compress", "--out", str(folder), *ARGUMENTS]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    path = folder / "checkpoint.safetensors"
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in output
    assert "Traceback" not in output
    finish(compress_in_process(folder, "--resume"))
    assert_same(uninterrupted, folder)


def test_resume_with_other_settings_names_them(uninterrupted: Path) -> None:
    code, output = compress_in_process(uninterrupted, "--resume", "--sparse.learning_rate=0.5").wait()
    assert code == 2
    assert "sparse.learning_rate" in output
