"""Ctrl-C outside of the stages, and settings that may change before a run goes on."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from nni_sparsevd import data, report, results, training
from nni_sparsevd.cli import main
from nni_sparsevd.cli.compress import COMPRESS
from nni_sparsevd.errors import SettingError
from nni_sparsevd.files import load_tensors, read_rows
from nni_sparsevd.recipe import LADDER, Recipe, read_recipe
from nni_sparsevd.settings import make_settings
from nni_sparsevd.studies import bench
from nni_sparsevd.training import compress, loop
from nni_sparsevd.training.run_folder import check_folder, prepare_folder

FLAGS = ["--data.limit=100", "--data.batch_size=30", "--sparse.epochs=1", "--masks.ratio=0.5"]


def press_ctrl_c(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


PHASES = {
    "reading": (data, "load_data", "before anything was written; the same command begins again"),
    "trying": (training.compression, "try_recipe", "before anything was written; the same command begins again"),
    "tracing": (training.stages, "make_variational_", "before the first checkpoint; go on with --resume"),
    "curve": (training.deciding, "choose_threshold", "what was trained is kept, go on with --resume"),
    "shrinking": (results.finishing, "shrink", "what was trained is kept, go on with --resume"),
    "measuring": (results.finishing, "measure_latencies", "what was trained is kept, go on with --resume"),
    "report": (report, "write_report", "what was trained is kept, go on with --resume"),
}


def test_ctrl_c_in_any_phase_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run that is stopped in each phase in turn, and goes on without its settings being said again."""
    folder = tmp_path / "run"
    first, again = ([f"--out={folder}", *more] for more in (FLAGS, ["--resume"]))
    parsed = COMPRESS.parser(["compress", *first]).parse_args(first)
    for phase, (place, name, message) in PHASES.items():
        if (folder / "recipe.toml").exists() and not parsed.resume:
            parsed = COMPRESS.parser(["compress", *again]).parse_args(again)
        with monkeypatch.context() as patch:
            patch.setattr(place, name, press_ctrl_c)
            with pytest.raises(KeyboardInterrupt) as stopped:
                COMPRESS.run(parsed, ["nni-sparsevd", "compress", *(again if parsed.resume else first)])
        assert message in str(stopped.value), phase
    COMPRESS.run(parsed, ["nni-sparsevd", "compress", *again])
    said = capsys.readouterr().out
    for words in ("reading the data", "trying the network", "shrinking", "measuring times", "writing the report"):
        assert f"{words}" in said
    assert read_recipe(folder / "recipe.toml").masks.ratio == 0.5
    assert [row["stage"] for row in read_rows(folder / "metrics.jsonl")] == ["sparse"]


@pytest.mark.parametrize(
    ("command", "place", "name", "message"),
    [
        (["export", "{run}", "--to=net.onnx"], results, "export_run", "the same command begins again"),
        (["measure", "{run}"], results, "measure_run", "the same command begins again"),
        (["report", "{run}"], report, "write_report", "the same command begins again"),
        (["bench", "digits", "--out={run}"], bench, "run_league", "the same command goes on"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_ctrl_c_in_other_commands_says_how_to_go_on(
    command: list[str],
    place: ModuleType,
    name: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "recipe.toml").touch()
    monkeypatch.setattr(place, name, press_ctrl_c)
    assert main([word.format(run=tmp_path) for word in command]) == 130
    assert capsys.readouterr().err.startswith(f"nni-sparsevd: stopped; {message}")


class StoppedError(Exception):
    """Not one of ours."""


def recipe(**changes: object) -> Recipe:
    values = {
        "data": {"limit": 100, "batch_size": 30, "workers": 0},
        "dense": {"epochs": 2},
        "sparse": {"epochs": 1, "kl_coefficient": 0.1},
        "finetune": {"epochs": 1},
        "masks": {"ratio": 0.5},
        "checkpoint_minutes": 1e-9,
    }
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return make_settings(Recipe, values)


def stop_after(steps: int, folder: Path, settings: Recipe, monkeypatch: pytest.MonkeyPatch, **options: bool) -> None:
    real, count = loop.set_learning_rate, 0

    def counted(optimizer: torch.optim.Optimizer, rate: float) -> None:
        nonlocal count
        count += 1
        if count > steps:
            raise StoppedError
        real(optimizer, rate)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "set_learning_rate", counted)
        with pytest.raises(StoppedError):
            compress(settings, folder, [], **options)


def test_stages_that_have_not_begun_may_change_and_the_run_is_as_if_it_had_begun_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"sparse": {"kl_coefficient": 0.5}, "masks": {"ratio": 0.7}, "finetune": {"learning_rate": 0.01}}
    last = recipe(**changes, quantize={"aware": True, "epochs": 1}, twin=True)
    compress(last, tmp_path / "whole", [])
    cut = tmp_path / "cut"
    stop_after(4, cut, recipe(), monkeypatch)  # in the dense stage
    with pytest.raises(SettingError, match=r"dense.epochs, seed. It has come to the stage dense; settings of later"):
        compress(recipe(dense={"epochs": 3}, seed=1, sparse={"kl_coefficient": 0.5}), cut, [], resume=True)
    stop_after(4, cut, recipe(sparse={"kl_coefficient": 0.5}), monkeypatch, resume=True)  # in the sparse stage
    with pytest.raises(SettingError, match=r"sparse.kl_coefficient. It has come to the stage sparse"):
        compress(recipe(), cut, [], resume=True)
    changed = recipe(sparse={"kl_coefficient": 0.5}, masks={"ratio": 0.7}, finetune={"learning_rate": 0.01})
    compress(changed, cut, [], resume=True)
    assert read_recipe(cut / "recipe.toml") == changed
    with pytest.raises(SettingError, match=r"finetune.learning_rate. It has come to the stage finetune"):
        compress(recipe(sparse={"kl_coefficient": 0.5}, masks={"ratio": 0.7}), cut, [], resume=True)
    made = compress(last, cut, [], resume=True)  # a finished run is tuned for integers and gets a twin
    with pytest.raises(SettingError, match=r"quantize.epochs, quantize.aware. It has come to the stage twin"):
        compress(recipe(**changes, twin=True), cut, [], resume=True)
    assert made.twin is not None
    for name in ("dense", "masks", "baked", "tuned", "quantized", "twin"):
        whole, left = (load_tensors(folder / f"{name}.safetensors")[0] for folder in (tmp_path / "whole", cut))
        assert whole.keys() == left.keys() and all(torch.equal(whole[key], left[key]) for key in whole), name


def test_what_was_measured_on_networks_is_forgotten_where_other_settings_change_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of a latency before the sparse stage's first checkpoint, and of a finished run."""
    folder = tmp_path / "run"

    def write(*names: str) -> None:
        for name in names:
            (folder / name).write_text("{}")

    def left() -> set[str]:
        return {path.name for path in folder.iterdir()} & {"latency.json", "exports.json", "runtimes.json"}

    stop_after(4, folder, recipe(), monkeypatch)  # in the dense stage
    write("latency.json")
    stop_after(0, folder, recipe(), monkeypatch, resume=True)
    assert left() == {"latency.json"}
    compress(recipe(finetune={"epochs": 0}, sparse={"kl_coefficient": 0.5}), folder, [], resume=True)
    assert left() == set()
    write("latency.json", "exports.json", "runtimes.json")
    settings = recipe(finetune={"epochs": 0}, sparse={"kl_coefficient": 0.5})
    for again in (settings, settings.model_copy(update={"twin": True, "checkpoint_minutes": 3.0})):
        prepare_folder(again, folder, [], resume=True, overwrite=False)
        assert left() == {"latency.json", "exports.json", "runtimes.json"}
    prepare_folder(recipe(sparse={"kl_coefficient": 0.5}), folder, [], resume=True, overwrite=False)
    assert left() == {"latency.json"}


def test_blocks_decide_in_the_sparse_stage_where_channels_leave_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shrinking = {"sparse": {"shrink_at": 3.0}, "dense": {"epochs": 0}, "posterior": {"granularity": "both"}}
    blocks = {"structure": "n:m", "keep": 1, "block": 2, "ratio": None}
    stop_after(2, tmp_path / "run", recipe(**shrinking, masks=blocks), monkeypatch)
    changed = recipe(**shrinking, masks={**blocks, "block": 4})
    with pytest.raises(SettingError, match=r"masks.block. It has come to the stage sparse"):
        compress(changed, tmp_path / "run", [], resume=True)


@pytest.mark.parametrize("key", ["model", "teacher", "sparse"])
def test_a_run_does_not_overwrite_the_weights_that_it_begins_with(tmp_path: Path, key: str) -> None:
    (tmp_path / "recipe.toml").write_text("")
    weights = tmp_path / "posterior.safetensors"
    weights.write_text("hours of work")
    with pytest.raises(SettingError, match=rf"--overwrite would delete {key}.checkpoint = .*posterior.safetensors"):
        check_folder(recipe(**{key: {"checkpoint": weights}}), tmp_path, resume=False, overwrite=True)


def read_what_compress_gets(typed: list[str], monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe with which `nni-sparsevd compress` would begin."""
    recipes = []

    def record(settings: Recipe, *_: object, **__: object) -> None:
        recipes.append(settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "compress", record)
    assert main(["compress", *typed]) == 130
    return recipes[0]


@pytest.mark.parametrize(
    "flags", [["--posterior={granularity: gate}"], ["--posterior", "{prior: ard, granularity: gate}"]]
)
def test_a_flag_for_a_whole_table_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    settings = read_what_compress_gets([f"--out={tmp_path / 'run'}", *flags], monkeypatch)
    assert settings.posterior.granularity == "gate"


@pytest.mark.parametrize(
    ("flags", "kind", "levels"),
    [
        (["--budget.latency=0.5"], "latency", (0.5,)),
        (["--budget={parameters: 0.3}"], "parameters", (0.3,)),
        (["--budget.macs=0.5"], "macs", (0.5,)),
        (["--budget.cuts=3"], "macs", (0.25,)),
        (["--budget.macs=null", "--budget.tolerance=0.02"], "macs", LADDER),
    ],
)
def test_a_flag_gives_a_budget_of_another_kind_than_the_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], kind: str, levels: tuple[float, ...]
) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("[budget]\nmacs = 0.25\n")
    settings = read_what_compress_gets([f"--out={tmp_path / 'run'}", f"--recipe={file}", *flags], monkeypatch)
    assert (settings.budget.kind, settings.budget.levels) == (kind, levels)
