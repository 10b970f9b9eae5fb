"""Our importance in every pruner of Torch-Pruning, and our pruner: a part of the table.

The whole table is in docs/results/torch_pruning_conformance.json, written by
`python tests/torch_pruning/write_table_of_pruners.py FILE`.
"""

import json
from pathlib import Path

import pytest
from table_of_pruners import BUILT_IN, COLUMNS, NETWORKS, OURS, ROWS, outcome

WORKS = dict.fromkeys(COLUMNS, "")
# what is not exact by nature, and what built-in pruners leave to their users: attention divides by another root then
NATURE = {
    "resnet18": ("",),
    "mobilenetv2_100": ("",),
    "convnext_atto": ("", "mixes"),
    "deit_tiny_patch16_224": ("", "mixes", "mixes, temperature"),
}
PART = ("SparseVDImportance, GroupNormPruner, global_pruning", "SparseVDPruner, by itself, both")
WAYS = (
    "SparseVDImportance, GrowingRegPruner, iterative_steps=3",
    "SparseVDImportance, BNScalePruner, interactive",
    "SparseVDPruner, pruning_ratio=0.5, gate",
    "GroupMagnitudeImportance, GroupNormPruner",
)


def assert_works(row, name, outcomes):
    assert {**outcomes, "exact": ""} == WORKS and outcomes["exact"] in NATURE[name], (row, name, outcomes)
    if row.startswith("SparseVDPruner"):
        assert "temperature" not in outcomes["exact"]
        assert not (outcomes["exact"] and row.endswith("by itself, gate"))


@pytest.mark.parametrize("row", PART)
@pytest.mark.parametrize("name", NETWORKS)
def test_ours_on_every_network(name, row):
    assert_works(row, name, outcome(row, name, smaller=True))


@pytest.mark.parametrize("row", WAYS)
def test_other_ways_on_resnet18(row):
    assert_works(row, "resnet18", outcome(row, "resnet18", smaller=True))


def test_a_failure_is_seen():
    """A built-in that is broken: it takes every group for attention."""
    assert "NoneType" in outcome("OBDCImportance, BasePruner", "resnet18", smaller=True)["runs"]


def test_the_published_table_is_whole_and_ours_works_everywhere():
    table = json.loads((Path(__file__).parents[2] / "docs/results/torch_pruning_conformance.json").read_text())
    assert list(table["networks"]) == list(NETWORKS)
    for name, rows in table["networks"].items():
        assert list(rows) == list(ROWS) == [*BUILT_IN, *OURS]
        for row in OURS:
            assert_works(row, name, rows[row])
