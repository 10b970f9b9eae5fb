"""Whatever works with any pruner of NNI works with ours: all rows for two networks, some of them for others.

NNI's own pruners are not run here: ours have to pass every row, whether NNI's do or not. What those pass is in the
table of all networks, docs/results/nni_conformance.json, written by `python tests/nni/conformance.py FILE`.
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


def check(row: str, name: str) -> None:
    assert {pruner: outcome(row, pruner, name) for pruner in OURS} == dict.fromkeys(OURS, "")


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("name", SMALL)
def test_ours_passes_every_row(name, row):
    check(row, name)


@pytest.mark.parametrize("row", COSTLY)
@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_networks_of_timm(name, row):
    check(row, f"small {name}")


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
