"""`reproduce`: committed recipes, runs that are kept, resumed and shown, and tables that hold what the runs said."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import numpy as np
import pytest
import torch
from PIL import Image
from processes import Child
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd import cli, models
from nni_sparsevd.errors import SettingError
from nni_sparsevd.files import read_json
from nni_sparsevd.studies.reproduce import experiments, running
from nni_sparsevd.studies.reproduce.calibration import score_predictions
from nni_sparsevd.studies.reproduce.experiments import list_experiments, read_experiment
from nni_sparsevd.studies.reproduce.gathering import sum_processor_seconds
from nni_sparsevd.studies.reproduce.running import find_jobs, jobs_of
from nni_sparsevd.studies.reproduce.tables import format_table

TINY = """
title = "Tiny"
about = "Digits."
columns = ["error", "sparsity", "compression", "units", "macs", "parameters", "train_error"]
pictures = ["progress", "tradeoff", "log_alpha", "weights", "posterior", "kl"]
seeds = [0, 1]
measures = ["tradeoff", "calibration"]

[recipe]
data = { limit = 400, batch_size = 20 }
sparse = { epochs = 2, kl_coefficient = 0.1 }

[variants.dense_net]
title = "LeNet-300-100"
recipe = { model = { name = "lenet_300_100" }, dense = { epochs = 2 }, sparse = { snapshots = ["fc2"] } }
published = [{ method = "somebody", error = "1.23", compression = "45" }]

[variants.wrong]
title = "a recipe that fails"
recipe = { model = { name = "lenet5_caffe" } }
seeds = [0]
"""
BARE = re.sub(r"^(pictures|measures) = .*$", r"\1 = []", TINY.partition("[variants.wrong]")[0], flags=re.M)
"""The variant that works, of which nothing is measured or drawn."""
Printed = pytest.CaptureFixture[str]


def call(root: Path, *arguments: str, data: str | None = None) -> int:
    """`reproduce tiny` in the folder `root`, with its recipes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments, "FOLDER", root / "recipes")
        return cli.main(["reproduce", *arguments, "--out", str(root / "runs"), "--data", data or str(root)])


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.toml").write_text(TINY)
    return tmp_path


class ForkedCommand:
    """In the place of a fresh interpreter, which takes seconds to import everything; it runs the same command."""

    def __init__(self, command: list[str], *, env: dict[str, str], stdout: IO[bytes], **_: object) -> None:
        assert command[1:3] == ["-m", "nni_sparsevd"]
        self._child, self._log = Child(cli.main, command[3:], environment=env), Path(stdout.name)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and self._child.poll() is not None:
            self.returncode, printed = self._child.wait()
            self._log.write_text(printed)
        return self.returncode


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """Folder, exit code and complaint of one call; not to be changed."""
    root = tmp_path_factory.mktemp("made")
    (root / "recipes").mkdir()
    (root / "recipes" / "tiny.toml").write_text(TINY)
    with contextlib.redirect_stderr(io.StringIO()) as complaint, pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "subprocess", SimpleNamespace(Popen=ForkedCommand))
        code = call(root, "tiny", "--jobs", "2")
    return root, code, complaint.getvalue()


@pytest.mark.parametrize("name", list_experiments())
def test_every_committed_recipe_is_valid(name: str) -> None:
    chosen = read_experiment(name)
    for job in jobs_of(chosen, Path("out")):
        recipe = chosen.recipe_of(job.variant, job.seed, Path("data"))
        assert recipe.seed == job.seed
        assert models.build_model(recipe.model.name, recipe.model.arguments)
        assert recipe.data.train is None or recipe.data.train.is_relative_to("data")
    assert format_table(chosen, [])[0].count("|") == len(chosen.columns) + 2  # every column is known


def test_an_experiment_is_run_shown_and_kept_though_a_run_fails(made: tuple[Path, int, str]) -> None:
    root, code, complaint = made
    assert code == 1
    assert "1 of 3 runs failed: wrong-0" in complaint and "at least 16 pixels" in complaint
    assert "wrong-0.log" in complaint
    folder = root / "runs" / "tiny"
    rows = read_json(folder / "tiny.json")["runs"]
    assert [(row["variant"], row["seed"]) for row in rows] == [("dense_net", 0), ("dense_net", 1)]
    for row in rows:
        result = read_json(folder / f"dense_net-{row['seed']}" / "result.json")
        assert row["error"] == result["test"]["shrunk"]["error_percent"]
        assert row["weights"] == result["weights"]
        assert [epoch["stage"] for epoch in row["epochs"]] == ["dense"] * 2 + ["sparse"] * 2
        assert row["processor_seconds"] > 0
    page = (folder / "tiny.md").read_text()
    errors = [row["error"] for row in rows]
    assert f"**{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f}**" in page
    assert "| LeNet-300-100: somebody | 1.23 |  | 45 |" in page
    pictures = ("progress", "tradeoff", "log_alpha", "posterior", "kl")
    assert all(Image.open(folder / f"{name}.png").size > (300, 200) for name in pictures)
    film = Image.open(folder / "weights_dense_net.gif")
    assert film.n_frames == 2  # equal frames at the end are one, shown longer


def test_what_is_done_is_not_run_again(made: tuple[Path, int, str], tmp_path: Path) -> None:
    """The page is made from what is there."""
    root = Path(shutil.copytree(made[0], tmp_path / "again"))
    (root / "recipes" / "tiny.toml").write_text(BARE)
    folder = root / "runs" / "tiny"
    before = (folder / "dense_net-0" / "result.json").stat().st_mtime_ns
    (folder / "tiny.json").unlink()
    assert call(root, "tiny") == 0
    assert (folder / "dense_net-0" / "result.json").stat().st_mtime_ns == before
    assert len(read_json(folder / "tiny.json")["runs"]) == 2


def test_processor_seconds_add_up_over_stages_and_resumptions() -> None:
    rows = [("dense", 3.0), ("dense", 5.0), ("sparse", 7.0), ("sparse", 14.0), ("sparse", 6.0), ("sparse", 12.0)]
    assert sum_processor_seconds([{"stage": stage, "processor_seconds": value} for stage, value in rows]) == 5 + 14 + 12


def test_measures_of_a_run_are_those_of_its_networks(made: tuple[Path, int, str]) -> None:
    folder = made[0] / "runs" / "tiny"
    row = read_json(folder / "tiny.json")["runs"][1]
    plain = {each["predictor"]: each for each in row["calibration"] if each["condition"] == "as they are"}
    result = read_json(folder / "dense_net-1" / "result.json")["test"]
    chosen = next(each for each in row["tradeoff"] if each["threshold"] == row["threshold"])
    assert chosen["error"] == pytest.approx(result["masked"]["error_percent"], abs=1e-3)  # there is no fine-tuning
    assert chosen["compression"] == pytest.approx(row["weights"]["compression"])
    assert len(row["tradeoff"]) == 13
    for predictor in ("dense", "shrunk"):
        assert plain[predictor]["error"] == pytest.approx(result[predictor]["error_percent"], abs=1e-3)
        assert plain[predictor]["nll"] == pytest.approx(result[predictor]["loss"], rel=1e-4)
    assert len(row["calibration"]) == 4 * 7
    assert len({each["nll"] for each in row["calibration"] if each["predictor"] == "pruned posterior"}) == 7


def test_the_run_of_another_recipe_is_not_shown_as_this_ones(made: tuple[Path, int, str], capsys: Printed) -> None:
    root = made[0]
    path = root / "recipes" / "tiny.toml"
    path.write_text(TINY.replace("kl_coefficient = 0.1", "kl_coefficient = 0.2"))
    try:
        assert call(root, "tiny", "--seeds", "[1]") == 2
    finally:
        path.write_text(TINY)
    assert "its run has other settings" in capsys.readouterr().err


def test_a_stopped_experiment_goes_on_with_a_seed_of_ones_own(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is stopped in a fresh interpreter, as of a user, and goes on in a process that takes no seconds to start."""
    (tiny / "recipes" / "tiny.toml").write_text(BARE)
    run = tiny / "runs" / "tiny" / "dense_net-7"
    ended = threading.Event()

    def terminate_after_first_checkpoint() -> None:
        while not (run / "checkpoint.safetensors").exists() and not ended.is_set():
            time.sleep(0.01)
        if not ended.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a late signal must not end pytest
    stopper = threading.Thread(target=terminate_after_first_checkpoint)
    stopper.start()
    try:
        assert call(tiny, "tiny", "--seeds", "[7]", data="x") == 130
    finally:
        ended.set()
        stopper.join()
        signal.signal(signal.SIGTERM, before)
    assert "go on with --resume" in run.with_suffix(".log").read_text()
    assert not (run / "result.json").exists()
    monkeypatch.setattr(running, "subprocess", SimpleNamespace(Popen=ForkedCommand))
    assert call(tiny, "tiny", "--seeds", "[7]") == 0  # digits need no folder, so another one is the same recipe
    assert [row["seed"] for row in read_json(run.parent / "tiny.json")["runs"]] == [7]


def test_a_page_shows_the_runs_of_all_seeds(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "FOLDER", tiny / "recipes")
    chosen, folder = read_experiment("tiny"), tiny / "runs"
    for name in ("dense_net-7", "dense_net-0", "wrong-7", "dense_net-best", "other-3"):
        (folder / name).mkdir(parents=True)
        (folder / name / "recipe.toml").touch()
    (folder / "dense_net-8").mkdir()  # not begun
    shown = ["dense_net-0", "wrong-0", "dense_net-1", "dense_net-7", "wrong-7"]
    assert [job.name for job in find_jobs(chosen, folder)] == shown
    assert [job.name for job in jobs_of(chosen, folder, (9, 9))] == ["dense_net-9", "wrong-9"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mnits"], "no experiment is named 'mnits'; there are tiny"),
        (["tiny", "--seeds", "[]"], "seeds: give whole numbers from 0, found []"),
        (["tiny", "--seeds", "[3,-1]"], "seeds: give whole numbers from 0, found [3, -1]"),
        (["tiny", "--jobs", "0"], "jobs: 1 or more, found 0"),
        (["tiny", "--job", "2"], "did you mean --jobs?"),
    ],
)
def test_wrong_calls(tiny: Path, capsys: Printed, arguments: list[str], message: str) -> None:
    assert call(tiny, *arguments) == 2
    assert message in capsys.readouterr().err


def test_without_a_name_the_experiments_are_listed(tiny: Path, capsys: Printed) -> None:
    assert call(tiny) == 0
    assert capsys.readouterr().out == "tiny             Tiny\n"


def test_a_broken_experiment_says_which_key(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "FOLDER", tiny / "recipes")
    (tiny / "recipes" / "tiny.toml").write_text(TINY + "\n[variant.more]\ntitle = 'x'\n")
    with pytest.raises(SettingError, match="variant"):
        read_experiment("tiny")


def test_scores_by_hand() -> None:
    """Two bins: ten predictions at 0.95 of which nine are right, ten at 0.55 of which five are."""
    sure, unsure = torch.tensor([0.95, 0.05]), torch.tensor([0.55, 0.45])
    probabilities = torch.cat([sure.expand(10, 2), unsure.expand(10, 2)]).double()
    labels = torch.tensor([0] * 9 + [1] + [0] * 5 + [1] * 5)
    made = score_predictions(probabilities, labels)
    assert made["error"] == pytest.approx(30.0)
    assert made["ece"] == pytest.approx(100 * (0.5 * 0.05 + 0.5 * 0.05), rel=1e-4)
    logs = np.log([0.95] * 9 + [0.05] + [0.55] * 5 + [0.45] * 5)
    assert made["nll"] == pytest.approx(-logs.mean(), rel=1e-5)
    entropies = [-(p * np.log(p)).sum() for p in (np.array([0.95, 0.05]), np.array([0.55, 0.45]))]
    assert made["entropy"] == pytest.approx(np.mean(entropies), rel=1e-5)


@pytest.mark.parametrize("name", ["lenet_300_100", "lenet5_caffe"])
def test_a_network_without_weights_survives_baking_shrinking_saving_and_export(name: str, tmp_path: Path) -> None:
    """What random labels leave: a constant."""
    torch.manual_seed(0)
    images = torch.randn(4, 1, 28, 28)
    model = svd.sparsify_(models.build_model(name, {}), init_log_sigma2=30.0)
    masks = svd.compute_masks(model, allow_empty=True)
    baked = svd.bake_(model, masks, allow_empty=True).eval()
    small, plan = svd.shrink(baked, images)
    assert svd.check(baked, small, images).ok
    layers = [m for m in small.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert all(layer.weight.shape[0] == 1 for layer in layers[:-1])
    assert plan.removed > 390
    svd.save(small, tmp_path / "small.safetensors")
    again = svd.load(tmp_path / "small.safetensors")
    exported = torch.export.export(again, (images,)).module()
    expected = baked(images)
    assert torch.equal(expected[0].expand_as(expected), expected)
    torch.testing.assert_close(exported(images), expected)
    assert json.loads(plan.to_json())["groups"]
