"""Scripts that NNI's users have, with one line changed."""

import warnings
from pathlib import Path

import pytest
import timm

from nni_sparsevd.errors import SparseVDWarning
from nni_sparsevd.plugins.nni import SparseVDPruner, disable, enable
from nni_sparsevd.plugins.nni.messages import logger

SCRIPTS = Path(__file__).parent / "scripts"


def run(name, **replaced):
    """Run a script with whole lines replaced; returns what it defines."""
    text = (SCRIPTS / name).read_text()
    for before, after in replaced.values():
        assert text.count(f"\n{before}\n") == 1
        text = text.replace(f"\n{before}\n", f"\n{after}\n")
    defined: dict[str, object] = {"__name__": "__main__"}
    exec(compile(text, name, "exec"), defined)
    return defined


def count_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "pruner"), [("l1norm.py", "L1NormPruner"), ("taylor.py", "TaylorPruner")])
def test_one_changed_line(name, pruner, capsys):
    line = f"from nni.compression.pruning import {pruner}"
    enable()  # NNI's own pruners and ModelSpeedup need the repairs; ours applies them itself
    before = run(name)
    disable()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SparseVDWarning)
        after = run(name, only=(line, f"from nni_sparsevd.plugins.nni import SparseVDPruner as {pruner}"))
    assert type(before["pruner"]).__name__ == pruner and type(after["pruner"]) is SparseVDPruner
    assert count_parameters(before["model"]) == count_parameters(after["model"])  # the same ratio in the same groups
    messages = " ".join(str(warning.message) for warning in caught if warning.category is SparseVDWarning)
    expected = "pruning by magnitude" if pruner == "L1NormPruner" else "the size of the training set is not known"
    assert expected in messages


def test_without_groups_the_channels_that_the_replaced_pruner_removes_go(monkeypatch):
    """The script names no granularity: to every pruner of NNI but LevelPruner that means channels, and so to ours."""
    pruner = ("from nni.compression.pruning import L1NormPruner", "from nni_sparsevd.plugins.nni import SparseVDPruner")
    made = ("pruner = L1NormPruner(model, config_list)", "pruner = SparseVDPruner(model, config_list)")
    groups = ("config_list = auto_set_denpendency_group_ids(model, config_list, dummy_input)", "")
    said = []
    monkeypatch.setattr(logger, "info", lambda message, *values: said.append(message % values))
    enable()
    before = run("l1norm.py", groups=groups)
    with pytest.warns(SparseVDWarning, match="pruning by magnitude"):
        after = run("l1norm.py", groups=groups, pruner=pruner, made=made)
    # Without groups the layers that are added together lose other channels in each case: not the same count, but near.
    assert count_parameters(after["model"]) == pytest.approx(count_parameters(before["model"]), rel=0.05)
    assert count_parameters(after["model"]) < 0.6 * count_parameters(timm.create_model("test_resnet", num_classes=10))
    assert len(said) == 1 and "whole output channels, as in TaylorPruner" in said[0]


def test_the_l1_script_trains_with_an_evaluator():
    """L1NormPruner needs no training and its script has no evaluator: the second line gives it one."""
    evaluator = "TorchEvaluator(train, prepare_optimizer(model), training_step)"
    with pytest.warns(SparseVDWarning, match="the size of the training set is not known"):
        done = run(
            "l1norm.py",
            pruner=(
                "from nni.compression.pruning import L1NormPruner",
                "from nni_sparsevd.plugins.nni import SparseVDPruner; from nni.compression.utils import TorchEvaluator",
            ),
            evaluator=(
                "pruner = L1NormPruner(model, config_list)",
                f"pruner = SparseVDPruner(model, config_list, {evaluator}, training_steps=20)",
            ),
        )
    log_alpha = done["pruner"].log_alpha()
    assert all(targets["weight"].isfinite().all() for targets in log_alpha.values())
