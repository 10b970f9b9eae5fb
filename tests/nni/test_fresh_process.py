"""Laws that need a process of their own: importing the plugin changes nothing, and `disable()` undoes everything.

One process serves them all: it takes seconds to import NNI with Lightning and Transformers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from nni_sparsevd.plugins.nni import SparseVDPruner

SCRIPT = Path(__file__).parent / "scripts" / "fresh_process.py"


@pytest.fixture(scope="module")
def findings():
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1"}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_plugin_changes_nothing(findings):
    assert findings["changed by the first import"] == findings["changed by the second import"] == []
    assert findings["changed by trace"] == []


def test_the_first_pruner_applies_the_repairs(findings):
    assert findings["unchanged by a pruner"] == []
    assert findings["as NNI's pruners"]


def test_disable_undoes_everything(findings):
    assert findings["changed after disable"] == findings["changed at the end"] == []


def test_a_pruner_applies_no_repair_that_the_user_left_out(findings):
    assert findings["changed without repairs"] == ["pruning", "pruning_apply_methods"]


def test_a_model_that_learns_can_be_sent_to_another_process(findings):
    assert findings["received model has noise"]


def test_pytrees_registration_is_pytorchs_own(findings):
    assert findings["pytree warnings"] == [] and findings["registration kept"]
    assert findings["overwritten without the guard"] and findings["warned without the guard"]


def test_the_order_does_not_follow_the_hash_seed(findings):
    """This process has another seed than the script: twelve names in a set come in another order."""
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(12)])
    pruner = SparseVDPruner(model, [{"op_types": ["Linear"]}])
    order = [list(pruner._target_spaces), list(pruner.get_masks()), [name for name, _ in model.named_parameters()]]
    assert order == findings["order"]
