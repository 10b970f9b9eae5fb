"""The plugin changes Torch-Pruning only while it is used, and everything can be undone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch_pruning as tp
from torch import nn
from torch_pruning.pruner.function import BasePruningFunc

import nni_sparsevd as svd
from nni_sparsevd.errors import SparseVDWarning
from nni_sparsevd.plugins.torch_pruning import SparseVDImportance, SparseVDPruner, SparseVDSettings, disable, enable

ROOT = Path(__file__).parents[2]
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CUT = "_prune_parameter_and_grad"


def snapshot() -> dict[str, object]:
    """Every function and attribute of every module and class of Torch-Pruning."""
    values = {}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] != "torch_pruning":
            continue
        for name, value in vars(module).items():
            values[f"{module_name}.{name}"] = value
            if isinstance(value, type) and value.__module__.startswith("torch_pruning"):
                values |= {f"{module_name}.{name}.{key}": attribute for key, attribute in vars(value).items()}
    return values


def assert_same(after: dict[str, object], before: dict[str, object]) -> None:
    changed = [name for name, value in before.items() if after[name] is not value]
    assert changed == []


@pytest.fixture(autouse=True)
def untouched():
    disable()
    yield
    disable()


def network(sparse: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    if sparse:
        svd.sparsify_(model, granularity="both", example_inputs=X)
        with torch.no_grad():
            model[0].log_sigma2 += 1.0  # as if it had been trained
    return model


def host_pruner(model: nn.Sequential, importance: object) -> tp.pruner.BasePruner:
    return tp.pruner.BasePruner(
        model,
        X,
        importance,
        pruning_ratio=0.5,
        ignored_layers=[model[3]],
        in_channel_groups={},
        out_channel_groups={},
        num_heads={},
    )


def use_everything() -> list[nn.Module]:
    """Our importance in the host's pruner, our pruner, and a group that is cut by hand."""
    by_importance, by_pruner, by_hand = network(), network(sparse=False), network()
    host_pruner(by_importance, SparseVDImportance()).step()
    settings = SparseVDSettings(n_train=10, posterior={"granularity": "both"})
    pruner = SparseVDPruner(by_pruner, X, settings=settings, pruning_ratio=0.5, iterative_steps=2)
    by_pruner(X).sum().backward()
    pruner.regularize()
    pruner.step()
    graph = tp.DependencyGraph().build_dependency(by_hand, X)
    graph.get_pruning_group(by_hand[0], tp.prune_conv_out_channels, [1, 5]).prune()
    return [by_importance, by_pruner, by_hand]


FRESH = """
import json, sys
import torch_pruning as tp
from torch_pruning.dependency.dependency import Dependency
from torch_pruning.dependency.group import Group
from torch_pruning.pruner.function import BasePruningFunc, PrunerBox

hosts_own = "matplotlib" in sys.modules
classes = [tp.DependencyGraph, Dependency, Group, BasePruningFunc, tp.pruner.BasePruner]
classes += [type(pruner) for pruner in PrunerBox.values()]
before = [dict(vars(kind)) for kind in classes]
import nni_sparsevd.plugins.torch_pruning
findings = {"unchanged": before == [dict(vars(kind)) for kind in classes]}
findings["draws"] = "matplotlib" in sys.modules and not hosts_own
import matplotlib
matplotlib.use("svg")
import nni_sparsevd.plugins.torch_pruning.pruner
findings["backend"] = matplotlib.get_backend()
print(json.dumps(findings))
"""


def test_importing_the_plugin_changes_neither_the_host_nor_matplotlib():
    ended = subprocess.run([sys.executable, "-c", FRESH], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == {"unchanged": True, "draws": False, "backend": "svg"}


def test_what_use_has_changed_is_undone():
    before = snapshot()
    use_everything()
    assert tp.DependencyGraph.build_dependency is before["torch_pruning.DependencyGraph.build_dependency"]
    assert vars(BasePruningFunc)[CUT] is before[f"torch_pruning.pruner.function.BasePruningFunc.{CUT}"]
    disable()
    assert_same(snapshot(), before)


def test_a_cut_that_fails_leaves_nothing_behind(monkeypatch):
    def fail(*_):
        raise RuntimeError("no memory")

    enable()
    monkeypatch.setattr(BasePruningFunc, CUT, fail)
    before = snapshot()
    model = network()
    graph = tp.DependencyGraph().build_dependency(model, X)
    with pytest.raises(RuntimeError, match="no memory"):
        graph.get_pruning_group(model[0], tp.prune_conv_out_channels, [1, 5]).prune()
    assert_same(snapshot(), before)


def test_nothing_hangs_on_parameters():
    for model in use_everything():
        assert [name for name, parameter in model.named_parameters() if vars(parameter)] == []


def test_a_network_without_posteriors_is_cut_by_the_hosts_own_function(monkeypatch):
    functions_seen = []
    host_cut = getattr(BasePruningFunc, CUT)

    def watch(self, *rest):
        functions_seen.append(getattr(BasePruningFunc, CUT))
        return host_cut(self, *rest)

    enable()
    monkeypatch.setattr(BasePruningFunc, CUT, watch)
    host_pruner(network(sparse=False), tp.importance.GroupMagnitudeImportance()).step()
    assert functions_seen
    assert set(functions_seen) == {watch}


def test_the_host_alone_cuts_posteriors_between_enable_and_disable():
    for switch, variances_left in ((disable, 8), (enable, 4), (disable, 8)):
        switch()
        model = network()
        host_pruner(model, tp.importance.GroupMagnitudeImportance()).step()
        assert len(model[0].weight) == 4
        assert len(model[0].log_sigma2) == variances_left


def test_using_ours_enables_again():
    importance = SparseVDImportance()
    model = network()
    pruner = host_pruner(model, importance)
    disable()
    pruner.step()
    assert len(model[0].log_sigma2) == len(model[1].gate.mu) == 4
    model = network(sparse=False)
    settings = SparseVDSettings(posterior={"granularity": "both"})
    pruner = SparseVDPruner(model, X, settings=settings, pruning_ratio=0.5, ignored_layers=[model[3]])
    disable()
    with pytest.warns(SparseVDWarning, match="not been trained, and channels go by magnitude"):
        pruner.step()
    assert model(X).shape == (2, 4, 4, 4)


def test_a_graph_that_was_built_before_is_cut_too():
    model = network()
    graph = tp.DependencyGraph().build_dependency(model, X)
    enable()
    graph.get_pruning_group(model[0], tp.prune_conv_out_channels, list(range(8))).prune([1, 5])
    assert len(model[0].log_sigma2) == len(model[1].gate.mu) == model[3].log_sigma2.shape[1] == 6


@pytest.mark.parametrize("granularity", ["weight", "gate", "both"])
def test_a_network_with_posteriors_counts_as_the_one_that_ships(granularity: str) -> None:
    plain = network(sparse=False)
    model = svd.sparsify_(network(sparse=False), granularity=granularity, example_inputs=X)
    enable()
    for count, expected in zip(
        tp.utils.count_ops_and_params(model, X, layer_wise=True),
        tp.utils.count_ops_and_params(plain, X, layer_wise=True),
        strict=True,
    ):
        if isinstance(expected, dict):
            assert [count[layer] for layer in model] == [expected[layer] for layer in plain]
        else:
            assert count == expected
    assert tp.utils.count_ops_and_params(model, X) == tp.utils.count_ops_and_params(plain, X)
