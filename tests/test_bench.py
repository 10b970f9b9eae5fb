"""The league: everyone gets the same, nothing is played twice, and a failure is a row."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from leagues import HERE, counted, short
from processes import start_server
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd import cli
from nni_sparsevd.errors import DataError, SettingError, ShrinkError, TrainingError
from nni_sparsevd.files import save_tensors, write_json
from nni_sparsevd.masks import Masks
from nni_sparsevd.studies.bench import (
    League,
    format_champions,
    format_level,
    list_leagues,
    page,
    read_league,
    rivals,
    run_league,
    running,
    write_page,
)
from nni_sparsevd.studies.bench.arena import Arena, Batch, cross_entropy, prepare_arena, start_file
from nni_sparsevd.studies.bench.cutting import cut_to
from nni_sparsevd.studies.bench.running import choose_rates, protocol_of, read_rows, restore_rows, run_trials
from nni_sparsevd.studies.bench.standing import compute_mean_ranks, compute_standings, find_pareto_front
from nni_sparsevd.studies.bench.trial import Row, Trial, run_trial
from nni_sparsevd.studies.processes import Limits

WEIGHTS = rivals.TABLES["weights"]
RESULTS = Path(__file__).parents[1] / "docs" / "results"


@pytest.mark.parametrize("name", ["digits", "digits_channels"])
def test_batches_depend_on_seed_and_step_alone(tmp_path: Path, name: str) -> None:
    arena = prepare_arena(short(name), 0, HERE, tmp_path)
    torch.manual_seed(1)
    first = [arena.batch(step) for step in (0, 13, 7)]
    torch.manual_seed(2)
    second = [arena.batch(step) for step in (7, 13, 0)][::-1]
    for (images, labels), (again, too) in zip(first, second, strict=True):
        assert torch.equal(images, again) and torch.equal(labels, too)
    seen = torch.cat([arena.batch(step)[0] for step in range(arena.per_epoch)])
    assert len(seen.unique(dim=0)) > 0.95 * len(seen)  # an epoch shows each image once; a few digits are twins


@pytest.mark.parametrize("processor", ["AVX2", "AVX512"])
def test_where_pytorch_would_crash_a_rival_gets_its_images_channels_first(
    tmp_path: Path, processor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rival may leave fewer than 8 channels to a shortcut, whose backward pass then writes past its memory."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: processor)
    league = short("digits_channels").model_copy(update={"channels_last": True})
    arena = prepare_arena(league, 0, HERE, tmp_path)
    batch = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    seen = {}
    for width in (7, 8):
        network = nn.Sequential(nn.Conv2d(3, width, 3), nn.Conv2d(width, 10, 1, stride=2))
        seen[width] = arena.lay_out(batch, network)[0].is_contiguous(memory_format=torch.channels_last)
    assert seen == {7: processor != "AVX2", 8: True}


def test_the_start_is_trained_once(tmp_path: Path) -> None:
    chosen = short("digits")
    first = prepare_arena(chosen, 0, HERE, tmp_path).start.state_dict()
    written = (tmp_path / "start-0.safetensors").stat().st_mtime_ns
    torch.manual_seed(5)
    again = prepare_arena(chosen, 0, HERE, tmp_path).start.state_dict()
    assert (tmp_path / "start-0.safetensors").stat().st_mtime_ns == written
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    other = prepare_arena(chosen, 1, HERE, tmp_path).start.state_dict()
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])


def test_masks_change_only_by_what_the_caller_hands_back(tmp_path: Path) -> None:
    arena = prepare_arena(short("digits"), 0, HERE, tmp_path)
    model, stage = arena.network(), arena.league.dense
    kept = torch.ones_like(model.fc1.weight)
    first = {"fc1": {"weight": kept.index_fill(0, torch.tensor([0]), 0)}}
    second = {"fc1": {"weight": kept.index_fill(0, torch.tensor([1]), 0)}}
    untouched = copy.deepcopy(first)
    zero_rows: list[list[int]] = []

    def after_backward(step: int) -> Masks | None:
        zero_rows.append((model.fc1.weight == 0).all(1).nonzero().flatten().tolist())
        return second if step == 2 else None

    arena.train(model, stage, 0, 5, after_backward=after_backward, masks=first)
    assert zero_rows == [[], [0], [0], [1], [1]]  # the row that is no longer masked learns again
    assert torch.equal(first["fc1"]["weight"], untouched["fc1"]["weight"])


def test_a_league_in_bfloat16_trains_in_it_and_scores_in_float32(tmp_path: Path) -> None:
    league = short("digits").model_copy(update={"precision": "bf16"})
    arena = prepare_arena(league, 0, HERE, tmp_path)
    model = arena.network()
    computed: list[torch.dtype] = []
    model.fc1.register_forward_hook(lambda module, inputs, output: computed.append(output.dtype))
    losses: list[torch.Tensor] = []

    def own_loss(batch: Batch, model: nn.Module) -> torch.Tensor:
        losses.append(cross_entropy(batch, model))
        return losses[-1]

    arena.train(model, league.dense, 0, 1)
    arena.train(model, league.dense, 1, 2, loss=own_loss)
    assert computed == [torch.bfloat16] * 2 and losses[0].dtype == torch.float32
    arena.score_holdout(model)
    assert set(computed[2:]) == {torch.float32}
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


# A league from start to end.


@pytest.fixture(autouse=True, scope="module")
def server() -> None:
    """Where another test has started the server of new processes without the rivals, each trial would import them."""
    start_server()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> League:
    """The league "digits" with all its levels, rates and seeds, but a few epochs of each training."""
    league = short("digits", rates=(3e-3, 1e-2), seeds=(0, 1))
    monkeypatch.setattr(page, "read_league", lambda name: league)
    return league


def test_a_league_is_run_once_and_shown_again(tmp_path: Path, quick: League, capsys, monkeypatch) -> None:
    command = ["bench", "digits", f"--out={tmp_path}", "--jobs=2", "--rivals=[vd_weight,magnitude]"]
    assert cli.main(command) == 0
    folder = tmp_path / "digits"
    values = json.loads((folder / "digits.json").read_text())
    levels = {(row["rival"], row["level"]) for row in values["rows"]}
    assert levels == {
        ("magnitude", 0.8),
        ("magnitude", 0.95),
        ("vd_weight", 0.8),
        ("vd_weight", 0.95),
        ("vd_weight", None),
    }
    assert not any(row["failed"] for row in values["rows"])
    sweep = [row for row in values["rows"] if row["seed"] == 0 and row["level"] == 0.95]
    assert len(sweep) == 4  # two rates each
    text = (folder / "digits.md").read_text()
    assert "Sparse VD, one weight sample" in text and "±" in text
    rows = {path: path.stat().st_mtime_ns for path in (folder / "rows").iterdir()}
    capsys.readouterr()
    assert cli.main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (folder / "rows").iterdir()} == rows
    assert "seed" not in capsys.readouterr().out  # nothing was run
    (folder / "digits.html").unlink()
    table_rows = write_page("digits", folder / "digits.json", folder).read_text().count("<tr>")
    assert table_rows == 2 * (3 + 4)  # two tables with two rivals each; the paired ones have a row for the seeds

    elsewhere = tmp_path / "elsewhere"
    restore_rows(quick, folder / "digits.json", elsewhere)
    assert {path.name: path.read_text() for path in (elsewhere / "rows").iterdir()} == {
        path.name: path.read_text() for path in rows
    }

    known = f"--known={folder / 'digits.json'}"
    more = ["bench", "digits", f"--out={tmp_path / 'more'}", known, "--rivals=[magnitude]"]
    assert cli.main([*more, "--seeds=[7]"]) == 0
    assert [path.name for path in (tmp_path / "more" / "digits").glob("start-*")] == ["start-7.safetensors"]
    added = json.loads((tmp_path / "more" / "digits" / "digits.json").read_text())["rows"]
    assert {row["seed"] for row in added if row["rival"] == "magnitude"} == {0, 1, 7}
    assert cli.main([*more, "--seeds=[-1]"]) == 2
    assert "found [-1]" in capsys.readouterr().err

    changed = quick.model_copy(update={"tune_epochs": 1})
    monkeypatch.setattr(page, "read_league", lambda name: changed)
    assert cli.main(command) == 2
    assert "tune_epochs" in capsys.readouterr().err
    assert cli.main([*command[:2], f"--out={tmp_path / 'new'}", known]) == 2
    assert "run under another tune_epochs" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(RESULTS.glob("bench_*.json")), ids=lambda path: path.stem)
def test_published_rows_are_taken_up_by_the_league_of_today(tmp_path: Path, path: Path) -> None:
    """Settings that have come since have their defaults in them."""
    restore_rows(read_league(path.stem.removeprefix("bench_")), path, tmp_path)
    assert len(read_rows(tmp_path)) == len(json.loads(path.read_text())["rows"])


def test_the_table_of_a_level_has_every_rival_the_best_first() -> None:
    rows = json.loads((RESULTS / "bench_cifar10_channels.json").read_text())["rows"]
    titles, _, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in format_level(read_league("cifar10_channels"), rows, 8)
    ]
    cells = [dict(zip(titles, line, strict=True)) for line in lines]
    assert {cell["name"] for cell in cells} == {row["rival"] for row in rows}
    errors = [cell["test error %"].partition(" ")[0] for cell in cells]
    reached = [float(error) for error in errors if error != "failed"]
    assert errors[len(reached) :] == ["failed"] * errors.count("failed") and reached == sorted(reached)
    (ours,) = (cell for cell in cells if cell["name"] == "vd_gate_distilled")
    played = [row for row in rows if (row["rival"], row["level"], row["rate"]) == ("vd_gate_distilled", 8, 3e-3)]
    fewer = [row["dense_macs"] / row["macs"] for row in played]
    assert ours["times fewer MACs"] == f"{sum(fewer) / len(fewer):.2f}"


def test_who_never_errs_comes_first() -> None:
    rows = json.loads((RESULTS / "bench_cifar10_channels.json").read_text())["rows"]
    for row in rows:
        if row["rival"] == "tp_random":
            row["error"] = 0.0
    first = format_level(read_league("cifar10_channels"), rows, 4)[2]
    assert "tp_random" in first and " 0.00 ± 0.00 " in first


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"rival": "../../x", "seed": 0, "rate": 1e-3, "level": 0.8}, "which is no rival for weights"),
        ({"rival": "magnitude", "seed": 0, "rate": "1e-3", "level": 0.8}, "not a row of ours"),
        ({"rival": "magnitude", "seed": "../../x", "rate": 1e-3, "level": 0.8}, "not a row of ours"),
        (7, "not a row of ours"),
    ],
)
def test_results_that_are_none_are_refused(tmp_path: Path, row: object, complaint: str) -> None:
    results, chosen = tmp_path / "results.json", read_league("digits")
    results.write_text(json.dumps({"protocol": protocol_of(chosen), "rows": [row]}))
    with pytest.raises(SettingError, match=complaint):
        restore_rows(chosen, results, tmp_path / "digits")
    assert not (tmp_path / "digits").exists()


def test_what_does_not_end_is_a_row_that_says_so(tmp_path: Path, quick: League) -> None:
    folder = tmp_path / "digits"
    for seed in quick.seeds:
        prepare_arena(quick, seed, HERE, folder)
    path = run_league("digits", HERE, tmp_path, [], 2, Limits(seconds=0.01), ("magnitude",))
    rows = json.loads((folder / "digits.json").read_text())["rows"]
    assert {row["failed"] for row in rows} == {"not finished in 0.01 s"}
    assert "not finished" in path.read_text()


def test_a_start_that_cannot_be_had_stops_the_league(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"dense start of seed 0 not finished in 0\.01 s"):
        run_league("digits", HERE, tmp_path, [], 1, Limits(seconds=0.01), ("magnitude",))


@pytest.mark.parametrize(
    ("name", "missing"), [("photos_channels", "tf_efficientnet_lite0.safetensors"), ("lenet_300_100", "nowhere")]
)
def test_what_no_trial_could_have_is_an_error_of_one_line(tmp_path: Path, capfd, name: str, missing: str) -> None:
    assert cli.main(["bench", name, f"--data={tmp_path / 'nowhere'}", f"--out={tmp_path}"]) == 1
    (line,) = "".join(capfd.readouterr()).splitlines()
    assert line.startswith("nni-sparsevd: ") and missing in line


def test_data_that_are_gone_are_no_fact_about_a_rival(tmp_path: Path, monkeypatch) -> None:
    """The dense starts are there, from a call with the right --data: no row may say that a rival has failed."""
    league = read_league("digits")
    folder = tmp_path / "digits"
    for seed in league.seeds:
        save_tensors({}, start_file(folder, seed))
    gone = {"data": league.data.model_copy(update={"name": "", "train": Path("gone")})}
    with pytest.raises(DataError, match="gone does not exist"):
        run_trials(league.model_copy(update=gone), tmp_path, folder, 1, Limits())
    assert not (folder / "rows").exists()


def test_a_rival_that_fails_leaves_a_reason_and_the_others_play(tmp_path: Path, monkeypatch) -> None:
    def prepare(arena, stage):
        def decide(level):
            if level == 0.95:
                raise ValueError("too much")
            return WEIGHTS["magnitude"].prepare(arena, stage)(level)

        return decide

    monkeypatch.setitem(WEIGHTS, "brittle", rivals.Rival("Brittle", "ours", prepare))
    trial = Trial(short("digits"), "brittle", 0, 1e-3, (0.95, 0.8), HERE, tmp_path)
    run_trial(trial)
    failed, fine = (json.loads(trial.row_file(level).read_text()) for level in trial.levels)
    assert failed["failed"] == "ValueError: too much"
    assert not fine["failed"] and fine["sparsity"] == pytest.approx(0.8, abs=0.001)
    assert trial.missing == ()


def test_tuning_keeps_zeros_and_uses_all_steps(tmp_path: Path, monkeypatch) -> None:
    steps: list[int] = []
    chosen = short("digits")
    prepare_arena(chosen, 0, HERE, tmp_path)
    monkeypatch.setattr(Arena, "batch", counted(Arena.batch, steps))
    run_trial(Trial(chosen, "magnitude_gradual", 0, 1e-3, (0.9,), HERE, tmp_path))
    row = json.loads(next((tmp_path / "rows").iterdir()).read_text())
    assert steps == list(range((4 + 2) * (1294 // 100)))  # 1,438 digits to train on, a tenth of them held out
    assert row["sparsity"] == pytest.approx(0.9, abs=0.001)


# Choices and standings.


def row(rival: str, held_out: float, error: float = 1.0, *, rate=1e-3, level=0.95, seed=0, failed="") -> dict:
    return {
        "rival": rival,
        "held_out": held_out,
        "error": error,
        "rate": rate,
        "level": level,
        "seed": seed,
        "failed": failed,
        "compression": 20.0,
        "dense_error": 1.0,
    }


def test_the_rate_is_chosen_on_held_out_images_alone() -> None:
    rows = [
        row("magnitude", 0.9, 5.0),
        row("magnitude", 0.8, 1.0, rate=3e-3),
        row("magnitude", 1.0, rate=9.0, failed="no"),
    ]
    rows += [row("vd_weight", 0.7), row("vd_weight", 0.99, level=0.8, rate=3e-3), row("nni_level", 0.0, failed="no")]
    assert choose_rates(read_league("digits"), rows) == {"magnitude": 1e-3, "vd_weight": 1e-3}


@pytest.mark.parametrize(("first", "second", "chosen"), [(1e-3, 3e-3, 3e-3), (3e-3, 1e-2, 3e-3), (1e-3, 1e-2, 1e-3)])
def test_among_equals_the_rate_is_the_nearest_to_the_middle(first: float, second: float, chosen: float) -> None:
    rates = read_league("digits").model_copy(update={"rates": (1e-3, 3e-3, 1e-2)})  # 1e-3 is the nearer edge
    rows = [row("magnitude", 0.9, rate=first), row("magnitude", 0.9, rate=second), row("magnitude", 0.8, rate=5e-3)]
    for order in (rows, rows[::-1]):
        assert choose_rates(rates, order) == {"magnitude": chosen}


def test_ranks_are_means_over_levels_of_those_who_arrived() -> None:
    chosen = read_league("digits").model_copy(update={"rivals": ("magnitude", "vd_weight", "nni_level", "vd_local")})
    errors = {"magnitude": (2.0, 9.0), "vd_weight": (3.0, 4.0), "nni_level": (2.0, 9.0)}
    places = [(name, *place) for name, pair in errors.items() for place in zip((0.8, 0.95), pair, strict=True)]
    rows = [row(name, 0.9, error, level=level, seed=seed) for name, level, error in places for seed in (0, 1)]
    rows.append(row("vd_local", 0.0, failed="broken"))
    ranked = compute_standings(chosen, rows, dict.fromkeys(errors, 1e-3))
    assert compute_mean_ranks(chosen, ranked) == {"magnitude": 1.5, "vd_weight": 2.0, "nni_level": 1.5}
    assert [standing.name for standing in ranked] == ["magnitude", "nni_level", "vd_weight", "vd_local"]
    assert ranked[-1].failed == "broken"


def test_the_best_of_a_framework_is_chosen_on_held_out_images_alone() -> None:
    rows = [row("vd_weight", 0.9, 5.0), row("vd_local", 0.8, 1.0), row("magnitude", 0.9, 2.0)]
    rows += [row("nni_level", 0.5, 7.0), row("nni_taylor", 0.9, 7.0, failed="no"), row("vd_local", 0.3, level=0.8)]
    head, _, *lines = format_champions(read_league("digits"), rows)
    assert head == "|  | 80 % zeros | 95 % zeros |"
    assert lines == [
        "| ours | 1.00, vd_local | 5.00, vd_weight |",
        "| torch |  | 2.00, magnitude |",
        "| NNI |  | 7.00, nni_level |",
    ]


def test_among_equals_on_held_out_images_test_images_choose_no_champion() -> None:
    errors = {"vd_local": 5.0, "vd_weight": 1.0}  # vd_local is listed first
    rows = [row(name, 0.9, error, level=level) for name, error in errors.items() for level in (0.8, 0.95)]
    assert format_champions(read_league("digits"), rows)[2] == "| ours | 5.00, vd_local | 5.00, vd_local |"


def test_the_front_is_what_nothing_beats() -> None:
    points = {"a": (1.0, 4.0), "b": (2.0, 2.0), "c": (2.0, 3.0), "d": (4.0, 1.0), "twin": (2.0, 2.0)}
    assert find_pareto_front(points) == {"a", "b", "d", "twin"}


def test_a_cut_is_the_largest_that_fits() -> None:
    example = torch.zeros(1, 10)
    cut = lambda ratio: nn.Linear(10, max(round(100 * (1 - ratio)), 1))  # noqa: E731
    network, ratio = cut_to(305, cut, example)
    assert network.out_features == 30 and ratio == pytest.approx(0.7, abs=0.01)
    with pytest.raises(ShrinkError, match="leaves 5 MACs"):
        cut_to(5, cut, example)


def test_a_cut_that_only_some_ratios_make_is_found() -> None:
    """A host that refuses to empty a layer cuts less beyond the ratio at which one would be empty."""
    example = torch.zeros(1, 10)
    refused = lambda ratio: nn.Linear(10, round(100 * (1 - ratio)) if ratio < 0.4 else 100)  # noqa: E731
    network, ratio = cut_to(700, refused, example)
    assert network.out_features == 70 and ratio == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("finished", [0, 3, 9])
def test_torchrun_shares_the_work_though_a_process_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int
) -> None:
    """Whatever other processes have finished meanwhile, each trial that is missing belongs to one process."""
    trials = [Trial(short("digits"), "magnitude", seed, 1e-3, (0.8,), HERE, tmp_path) for seed in range(10)]
    run: list[int] = []

    def run_isolated(work, tasks, *_):
        for task in tasks:
            row = Row(task.rival, task.seed, task.rate, 0.8)
            write_json(task.row_file(0.8), asdict(row))
            run.append(task.seed)
            yield task, ""

    monkeypatch.setattr(running, "run_isolated", run_isolated)
    monkeypatch.setattr(running, "_wait_for_other_processes", lambda missing_files, limits: None)
    for seed in range(finished):
        write_json(trials[seed].row_file(0.8), {})
    for rank in range(3):  # the later ones begin when the earlier ones are done
        monkeypatch.setitem(os.environ, "RANK", str(rank))
        monkeypatch.setitem(os.environ, "WORLD_SIZE", "3")
        running._run_missing(trials, 1, Limits())
    assert sorted(run) == list(range(finished, 10))


def test_a_process_of_torchrun_that_died_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "GRACE", 0.1)
    monkeypatch.setattr(running, "POLL", 0.02)
    monkeypatch.setitem(os.environ, "RANK", "0")
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    league = short("digits").model_copy(update={"seeds": (0, 1)})
    start_file(tmp_path, 0).touch()  # this process has done its share; the other one never writes start-1
    began = time.monotonic()
    with pytest.raises(TrainingError, match=r"start-1.safetensors.*start the same command again"):
        running.run_trials(league, HERE, tmp_path, 1, Limits(seconds=0.1))
    assert time.monotonic() - began < 10


def test_who_still_brings_files_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six arrivals, each within the patience of 0.5 s, take longer together than the patience."""
    monkeypatch.setattr(running, "GRACE", 0.2)
    monkeypatch.setattr(running, "POLL", 0.12)
    missing = [tmp_path / str(place) for place in range(6)]

    def missing_files() -> list[Path]:
        missing.pop()
        return list(missing)

    running._wait_for_other_processes(missing_files, Limits(seconds=0.3))
    assert not missing


@pytest.mark.parametrize("name", list_leagues())
def test_the_leagues_that_are_there_can_be_played(name: str) -> None:
    assert read_league(name).rivals or rivals.rivals_of(read_league(name))


def test_unknown_names_are_told(capsys) -> None:
    assert cli.main(["bench", "nowhere"]) == 2
    assert f"no league is named 'nowhere'; there are {', '.join(list_leagues())}" in capsys.readouterr().err
    assert cli.main(["bench", "digits", "--rivals=[nobody]"]) == 2
    assert "no rival is named nobody; there are vd_" in capsys.readouterr().err
    with pytest.raises(SettingError, match="nobody"):
        rivals.rivals_of(read_league("digits").model_copy(update={"rivals": ("nobody",)}))
    assert cli.main(["bench"]) == 0
    assert "Sparse VD, local" in capsys.readouterr().out
    warnings.resetwarnings()


SLEEPER = """
import os, sys, time, types
from pathlib import Path

package = types.ModuleType("nni_sparsevd")  # without its front door, which takes seconds to import torch
package.__path__ = [sys.argv[2]]
sys.modules["nni_sparsevd"] = package
from nni_sparsevd.studies.processes import Limits, run_isolated

def work(folder):
    (Path(folder) / "pid").write_text(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    list(run_isolated(work, [sys.argv[1]], 1, Limits(), "psutil"))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_told_to_stop_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in the background of a shell ignore Ctrl-C
    command = [sys.executable, str(script), str(tmp_path), str(Path(svd.__file__).parent)]
    parent = subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=heeds)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert parent.poll() is None, "the parent ended before its work began"
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    assert psutil.pid_exists(child)
    parent.send_signal(number)
    assert parent.wait(timeout=20) != 0
    deadline = time.monotonic() + 10
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the work goes on without anyone who waits for it"
        time.sleep(0.05)
