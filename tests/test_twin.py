"""The dense twin: trained for as long as the run, in the same way, and compared with the smaller network."""

import json
from pathlib import Path

import pytest
import torch

from nni_sparsevd.files import load_tensors, read_rows
from nni_sparsevd.recipe import Recipe
from nni_sparsevd.report import write_remarks, write_report
from nni_sparsevd.results import finish_run
from nni_sparsevd.settings import make_settings
from nni_sparsevd.training import compress

RECIPE = {
    "data": {"limit": 300, "batch_size": 30},
    "dense": {"epochs": 1},
    "sparse": {"epochs": 2, "learning_rate": 2e-3, "schedule": "cosine", "optimizer": "adamw", "kl_coefficient": 0.1},
    "finetune": {"epochs": 1, "learning_rate": 5e-4},
    "teacher": {"weight": 0.5},
    "masks": {"allow_empty": True, "ratio": 0.5},
}


def run(folder: Path, **changes: object) -> str:
    """Run the recipe; returns what the terminal says at the end."""
    return finish_run(compress(make_settings(Recipe, {**RECIPE, **changes}), folder, []), folder)


@pytest.fixture(scope="module")
def with_twin(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("twin") / "with"
    (folder.parent / "printed").write_text(run(folder, twin=True))
    return folder


def test_it_takes_the_steps_and_rates_of_the_stages_after_the_dense_one(with_twin):
    rows = read_rows(with_twin / "metrics.jsonl")
    of = {stage: [row for row in rows if row["stage"] == stage] for stage in dict.fromkeys(r["stage"] for r in rows)}
    assert list(of) == ["dense", "sparse", "finetune", "twin_sparse", "twin_finetune"]
    for stage in ("sparse", "finetune"):
        for mine, twins in zip(of[stage], of[f"twin_{stage}"], strict=True):
            assert [mine[key] for key in ("epoch", "step", "learning_rate")] == [
                twins[key] for key in ("epoch", "step", "learning_rate")
            ]
            assert (twins["sparsity"], twins["compression"], twins["kl"], twins["kl_weight"]) == (0, 1, 0, 0)
    dense, twin = (load_tensors(with_twin / f"{name}.safetensors")[0] for name in ("dense", "twin"))
    assert dense.keys() == twin.keys()
    assert not any(torch.equal(dense[name], twin[name]) for name in dense)


def test_the_run_beside_it_is_the_same(with_twin, tmp_path):
    without = tmp_path / "without"
    printed = run(without)
    for name in ("dense", "masks", "masked", "small"):
        first, second = (load_tensors(folder / f"{name}.safetensors")[0] for folder in (with_twin, without))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    (remark,) = write_remarks(json.loads((without / "result.json").read_text()))[-1:]
    assert remark.startswith("The dense network is the one before the sparse stage") and "twin = true" in remark
    assert "twin    test error" not in printed


def test_the_report_compares_with_it(with_twin):
    result = json.loads((with_twin / "result.json").read_text())
    page = write_report(with_twin)
    twin, small = (100 * result["test"][name]["accuracy"] for name in ("twin", "shrunk"))
    printed = (with_twin.parent / "printed").read_text()
    assert f"twin    test error {100 - twin:5.2f} %" in printed
    for text in (page.read_text(), page.with_suffix(".md").read_text()):
        assert "Against its dense twin" in text.replace("&gt;", ">")
        assert f"{small:.2f} % of the test images right, {twin:.2f} % its dense twin" in text
        assert "1 dense, 2 sparse, 1 of fine-tuning; the twin 4" in text
    rows = [line.split("|") for line in page.with_suffix(".md").read_text().splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in rows[0]][1:-1] == ["", "dense", "twin", "masked", "shrunk", "dense ÷ shrunk"]
    errors = next(row for row in rows if "Test error" in row[1])
    assert errors[3].strip() == f"{100 - twin:.2f}"
