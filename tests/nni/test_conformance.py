"""Whatever works with any pruner of NNI works with ours: the whole table for two networks, a part of it for others.

The table of all networks is in docs/results/nni_conformance.json, written by `python tests/nni/conformance.py FILE`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance import NETWORKS, OURS, PRUNERS, ROWS, SMALL_NETWORKS, compress_once, finish, outcome

SMALL = ("CNN", "MLP")
COSTLY = ("compress, TorchEvaluator", "unwrap_model", "mask file, ModelSpeedup", "ExactSpeedup")


@pytest.fixture(autouse=True, scope="module")
def finished_networks_are_freed() -> Iterator[None]:
    yield
    finish.cache_clear()
    compress_once.cache_clear()


def check(row: str, name: str, pruners: list[str]) -> None:
    outcomes = {pruner: outcome(row, pruner, name) for pruner in pruners}
    assert any(not error for error in outcomes.values()), f"{row} works with no pruner: {outcomes}"
    assert {pruner: outcomes[pruner] for pruner in OURS} == dict.fromkeys(OURS, "")


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", SMALL)
def test_ours_passes_every_row(name, row):
    check(row, name, list(PRUNERS))


@pytest.mark.parametrize("row", COSTLY)
@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_networks_of_timm(name, row):
    check(row, f"small {name}", OURS)


def test_a_failure_is_seen():
    """The rows can fail: Slim scales the weights of a layer, and unwrapping it drops the scale."""
    assert "not close" in outcome("unwrap_model", "SlimPruner", "CNN")


def test_the_published_table_is_whole_and_ours_passes_wherever_one_of_nnis_does():
    table = json.loads((Path(__file__).parents[2] / "docs/results/nni_conformance.json").read_text())["networks"]
    assert list(table) == list(NETWORKS)
    for name, rows in table.items():
        assert list(rows) == list(ROWS)
        for row, found in rows.items():
            assert list(found) == list(PRUNERS)
            passed = any(not wrong for pruner, wrong in found.items() if pruner not in OURS)
            assert not passed or not any(found[pruner] for pruner in OURS), (name, row)
