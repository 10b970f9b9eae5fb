"""The zoo: rows that are kept, limits that end a family, and a table that hides nothing."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from processes import start_server

from nni_sparsevd import cli
from nni_sparsevd.errors import FileFormatError
from nni_sparsevd.files import read_json, write_json
from nni_sparsevd.studies.zoo import Limits, format_summary, format_table, run_zoo, torchvision_networks, trials
from nni_sparsevd.studies.zoo.families import find_smallest, list_families
from nni_sparsevd.studies.zoo.libraries import find_library
from nni_sparsevd.studies.zoo.trials import Row
from nni_sparsevd.training import find_commit

Printed = pytest.CaptureFixture[str]


def test_families_are_timms_own_modules() -> None:
    assert len(list_families()) > 90 and "resnet" in list_families() and "models" not in list_families()
    assert list_families("resnet,vgg*") == ["resnet", "vgg"]
    member = find_smallest("starnet")
    assert (member.model, member.sizes[0], member.layer_norms) == ("starnet_s050", 64, False)


def test_a_family_is_shrunk_in_its_own_process_and_only_once(tmp_path: Path, capsys: Printed) -> None:
    start_server()  # with what the processes of other tests need
    command = ["zoo", "--out", str(tmp_path), "--families", "starnet"]
    assert cli.main(command) == 0
    rows = read_json(tmp_path / "zoo.json")["rows"]
    assert [row["kill"] for row in rows] == ["half", "random"]
    for row in rows:
        assert row["verdict"] == "exact" and row["removed"] > 400 and not row["deaf"]
        assert row["commit"] == find_commit()
        assert row["max_rel_64"] < 1e-10 and row["max_rel_32"] < 1e-5
        assert row["parameters"][1] < 0.8 * row["parameters"][0] and row["macs"][1] < row["macs"][0]
    assert rows[0]["gated_channels"] == rows[0]["free_channels"] == 2 * rows[0]["killed"]
    assert rows[0]["max_rel_gradient"] < 1e-9 and rows[1]["max_rel_gradient"] is None
    said = capsys.readouterr().out
    assert "starnet (starnet_s050), half: exact" in said and "1 of 1 families shrink exactly" in said
    assert "starnet_s050" in (tmp_path / "zoo.md").read_text()
    # a second run reads what is there
    rows[0]["removed"] = 7
    write_json(tmp_path / "rows" / "starnet.json", rows)
    assert cli.main(command) == 0
    assert read_json(tmp_path / "zoo.json")["rows"][0]["removed"] == 7


def test_a_large_network_stays_in_float32_and_is_compared_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "LARGEST_IN_64", 0)
    made = trials.run_trial(replace(find_smallest("starnet"), sizes=(64,)), "half", 0)
    assert made.verdict == "exact" and made.removed > 400 and made.max_rel_gradient is None
    assert made.max_rel_64 < 1e-6 and not made.without_effect
    assert format_table([made.to_dict()])[-1].split("|")[-4:-3] == ["  "]


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [(Limits(seconds=0.05), "not finished in 0.05 s"), (Limits(gibibytes=0.001), "took more than 0.001 GiB")],
)
def test_what_exceeds_a_limit_is_a_row_that_says_so(tmp_path: Path, limits: Limits, verdict: str) -> None:
    (row,) = run_zoo(tmp_path, "starnet", 1, limits)
    assert row.verdict == verdict and "**" in format_table([row.to_dict()])[-1]


@pytest.mark.parametrize("rows", [[{"kept": 3}], [3], 3])
def test_rows_of_something_else_are_named(tmp_path: Path, rows: Any) -> None:
    write_json(tmp_path / "starnet.json", rows)
    with pytest.raises(FileFormatError, match=r"starnet\.json: not rows of the zoo"):
        run_zoo(tmp_path, "starnet")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--families", "resnext*"], "families: no architecture module of timm matches 'resnext*'"),
        (["--jobs", "0", "--families", "vgg"], "jobs: 1 or more, found 0"),
        (["--family", "vgg"], "did you mean --families?"),
        (["--library", "keras"], "library: one of timm, torchvision, transformers, found 'keras'"),
        (["--library", "transformers", "--families", "vgg"], "no network of transformers in the zoo matches 'vgg'"),
    ],
)
def test_wrong_flags(tmp_path: Path, capsys: Printed, flags: list[str], message: str) -> None:
    assert cli.main(["zoo", "--out", str(tmp_path), *flags]) == 2
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize(("library", "name"), [("transformers", "vit"), ("torchvision", "squeezenet1_1")])
def test_networks_of_other_libraries_shrink_exactly(library: str, name: str) -> None:
    kind, _, run = find_library(library).find(name)
    row = run("half", 0)
    assert (row.family, row.model, row.verdict) == (name, kind, "exact") and row.removed == row.masked > 50


def test_boxes_are_compared_by_what_the_whole_detectors_find() -> None:
    torch.manual_seed(0)
    model, (images,) = torchvision_networks.make_network("fasterrcnn_mobilenet_v3_large_320_fpn")
    assert isinstance(model, torchvision_networks.DetectorParts)
    model.eval()
    other = copy.deepcopy(model)
    assert torchvision_networks.largest_box_difference(model, other, images) == 0
    with torch.no_grad():
        other.detector.roi_heads.box_predictor.cls_score.bias[1] += 0.1
    assert torchvision_networks.largest_box_difference(model, other, images) > 1e-3


def test_multiscale_attention_for_small_clips_is_the_network_of_torchvision_but_for_its_positions() -> None:
    with torch.device("meta"):
        model, (clip,) = torchvision_networks.make_network("mvit_v2_s")
        full = torchvision.models.get_model("mvit_v2_s", weights=None)
    assert clip.shape == (1, 3, 8, 64, 64) and str(model) == str(full)
    shapes, expected = ({name: value.shape for name, value in net.named_parameters()} for net in (model, full))
    assert list(shapes) == list(expected)
    differing = {name for name in shapes if shapes[name] != expected[name]}
    assert differing and all(".rel_pos_" in name for name in differing)


@pytest.mark.parametrize("name", ["zoo", "zoo_torchvision", "zoo_transformers"])
def test_published_rows_keep_their_keys(name: str) -> None:
    published = read_json(Path(__file__).parents[1] / "docs" / "results" / f"{name}.json")["rows"]
    assert len(published) > 30
    for record in published:
        assert json.loads(json.dumps(Row.from_dict(record).to_dict())) == record


def row(family: str, mask_kind: str, **values: Any) -> dict[str, Any]:
    sizes = {"removed": 5, "masked": 5, "parameters": (10, 5), "macs": (10, 2)}
    settled = {"verdict": "exact", "max_rel_64": 1e-16, "max_rel_32": 1e-7, **sizes}
    return Row(family, f"{family}_s", mask_kind, **{**settled, **values}).to_dict()


def test_the_summary_counts_what_the_rows_say() -> None:
    rows = [
        row("good", "half", max_rel_gradient=2e-15),
        row("good", "random", again=3),
        row(
            "kept",
            "half",
            removed=0,
            masked=0,
            max_rel_32=2e-5,
            max_rel_gradient=0.5,
            reasons={"lstm has no rule": 4, "output of the network": 1},
        ),
        row("wrong", "half", verdict="different: DIFFERENT"),
        row("wrong", "random", max_rel_64=1e-13),
    ]
    text = format_summary(rows)
    lines = text.splitlines()
    assert lines[0] == "1 of 3 families shrink exactly under every mask"
    assert "keep all channels under some mask, for the reasons in the table: 1 (kept)" in lines
    assert "anything else, see the table: 1 (wrong)" in lines
    assert "largest relative difference of those that are exact: 1.0e-13 in float64, 2.0e-05 in float32" in lines
    assert any(line.startswith("above 1e-05 in float32") and line.endswith("by itself: kept") for line in lines)
    assert "gradients differ by more than 1e-08 of the largest: kept" in lines
    assert "planning again finds more, as a grouped convolution was left with one group: good" in lines
    assert "anything else, see the table: none" in format_summary([row("good", "half")])
    lines = format_table(rows)
    assert len(lines) == 5 and "lstm has no rule (4)" in lines[3] and "**half: different: DIFFERENT" in lines[4]


def test_networks_that_are_too_large_for_float64_are_named_apart() -> None:
    large = row("large", "half", max_rel_64=2e-7, parameters=(4 * 10**8, 2 * 10**8))
    lines = format_summary([row("good", "half"), large]).splitlines()
    assert "largest relative difference of those that are exact: 1.0e-16 in float64, 1.0e-07 in float32" in lines
    assert "held in float32 for their size, and compared in float64: large, 2.0e-07" in lines


def test_gates_are_counted_where_rows_have_them() -> None:
    assert "gate" not in format_summary([row("a", "half")])
    few = row("b", "half", free_channels=100, gated_channels=70, without_gate={"no module returns it": 30})
    records = [row("a", "half", free_channels=50, gated_channels=50), few]
    lines = format_summary(records).splitlines()
    assert "gates on at least 98% of the channels that may go: 1 of the 2 families that have any" in lines
    assert "fewer in b: no module returns it" in lines
    titles, _, all_gated, some_gated = [line.split("|") for line in format_table(records)]
    column = titles.index(" gates ")
    assert (all_gated[column], some_gated[column]) == (" 100.0% ", " 70.0% ")


def test_rows_of_several_commits_are_told_apart() -> None:
    rows = [row("a", "half", commit="1" * 40), row("b", "half", commit="1" * 40)]
    assert "commit" not in format_summary(rows)
    assert "rows by commit: 111111111 (2), unknown (1)" in format_summary([*rows, row("c", "half")])


def test_a_network_that_computes_something_else_fails_the_command(tmp_path: Path, capsys: Printed) -> None:
    write_json(tmp_path / "rows" / "vgg.json", [row("vgg", "half", verdict="different: DIFFERENT")])
    assert cli.main(["zoo", "--out", str(tmp_path), "--families", "vgg"]) == 1
    assert "1 networks compute something else once shrunk" in capsys.readouterr().err
