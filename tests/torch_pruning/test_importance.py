"""`SparseVDImportance`: what it says of a group, and that posteriors are cut along with their weights."""

import copy

import pytest
import torch
import torch_pruning as tp
from conftest import randomize_
from table_of_pruners import NORMALIZERS, REDUCTIONS
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.errors import SparseVDWarning
from nni_sparsevd.nn import Variational, gate_sites, is_variational
from nni_sparsevd.plugins.torch_pruning import SparseVDImportance, disable, enable

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def unpatched():
    """Undo what a test enables, or enables by using our importance."""
    disable()
    yield
    disable()


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.second(self.norm(self.first(x)).relu())


class Residual(Plain):
    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        return self.last(x + self.second(x))


class Grouped(Residual):
    def __init__(self, groups=2):
        super().__init__()
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=groups)

    def forward(self, x):
        return self.last(super(Residual, self).forward(x).relu())


class Depthwise(Grouped):
    def __init__(self):
        super().__init__(8)


class Transposed(Grouped):
    def __init__(self):
        super().__init__(1)
        self.second = nn.ConvTranspose2d(8, 8, 3, padding=1)


class DepthwiseTransposed(Grouped):
    def __init__(self):
        super().__init__(1)
        self.second = nn.ConvTranspose2d(8, 8, 3, padding=1, groups=8)


class Flattened(Plain):
    def __init__(self):
        super().__init__()
        self.second = nn.Linear(8 * 4, 4)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(self.norm(self.first(x)).relu(), 2)
        return self.second(x.flatten(1))


def rows(layer):
    """Sums of theta^2 and sigma^2 over what writes each output; shape (2, outputs)."""
    return power(layer).flatten(2).sum(2)


def columns(layer):
    """The same over what reads each input."""
    return power(layer).transpose(1, 2).flatten(2).sum(2)


def power(layer):
    return torch.stack([layer.weight**2, layer.log_sigma2.exp()]).double().detach()


# (network, layer, what writes and reads its outputs); of a grouped convolution the same columns go in all groups
LAWS = {
    "plain": (Plain, "first", lambda m: rows(m.first) + columns(m.second)),
    "residual": (Residual, "first", lambda m: rows(m.first) + columns(m.second) + rows(m.second) + columns(m.last)),
    "into groups": (Grouped, "first", lambda m: rows(m.first) + columns(m.second).repeat(1, 2)),
    "out of groups": (Grouped, "second", lambda m: rows(m.second) + columns(m.last)),
    "depthwise": (Depthwise, "first", lambda m: rows(m.first) + rows(m.second) + columns(m.last)),
    "into transposed": (Transposed, "first", lambda m: rows(m.first) + rows(m.second)),
    "out of transposed": (Transposed, "second", lambda m: columns(m.second) + columns(m.last)),
    "depthwise transposed": (DepthwiseTransposed, "first", lambda m: rows(m.first) + rows(m.second) + columns(m.last)),
    "flattened": (Flattened, "first", lambda m: rows(m.first) + columns(m.second).view(2, 8, 4).sum(2)),
}
KINDS = (Plain, Residual, Grouped, Depthwise, Transposed, DepthwiseTransposed, Flattened)
GRANULARITIES = {**dict.fromkeys(KINDS, ("weight", "both")), Grouped: ("weight",)}  # whose channels have no gate


def network(kind, granularity="weight"):
    """With posteriors whose variances, like the gates, are known functions of the parameters beside them."""
    torch.manual_seed(0)
    model = randomize_(kind())
    svd.sparsify_(model, granularity=granularity, example_inputs=X)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, Variational):
                layer.log_sigma2.copy_(variances(layer))
        for bias, gate in gates(model):
            gate.mu.copy_(3 * bias + 1)
            gate.log_sigma2.copy_(bias - 2)
    return model


def variances(layer):
    return 20 * layer.weight - 3


def gates(model):
    """(bias of the first layer or norm that it scales, gate)."""
    first = {}
    for name, _, gate in gate_sites(model):
        first.setdefault(gate, model.get_submodule(name).bias)
    return [(bias, gate) for gate, bias in first.items()]


def assert_cut_alike(model):
    """Every variance and gate is still where its weight is."""
    for layer in model.modules():
        if isinstance(layer, Variational):
            assert torch.equal(layer.log_sigma2, variances(layer))
    for bias, gate in gates(model):
        assert torch.equal(gate.mu, 3 * bias + 1) and torch.equal(gate.log_sigma2, bias - 2)


def group_of(model, name="first"):
    graph = tp.DependencyGraph().build_dependency(model, X)
    return graph.get_pruning_group(model.get_submodule(name), tp.prune_conv_out_channels, list(range(8)))


@pytest.mark.parametrize("case", LAWS)
def test_the_score_is_the_share_of_the_signal_in_all_that_writes_or_reads(case):
    kind, name, moments = LAWS[case]
    model = network(kind)
    signal, noise = moments(model)
    score = SparseVDImportance()(group_of(model, name))
    torch.testing.assert_close(score, (1 / (1 + noise / signal)).float())
    assert 0 < score.min() < score.max() < 1


@pytest.mark.parametrize("granularity", ["gate", "both"])
@pytest.mark.parametrize("kind", [Plain, Residual, Depthwise, Flattened], ids=lambda kind: kind.__name__)
def test_a_gate_speaks_for_its_group(kind, granularity):
    model = network(kind, granularity)
    gate = gates(model)[0][1]  # the first layer's
    signal, noise = gate.mu.detach() ** 2, gate.log_sigma2.detach().exp()
    torch.testing.assert_close(SparseVDImportance()(group_of(model)), 1 / (1 + noise / signal))


def test_an_unknown_reduction_is_named():
    for reduction in ("median", None):  # Torch-Pruning's None gives a score a layer, which no pruner can use
        with pytest.raises(svd.SparseVDError, match="known are posterior, sum"):
            SparseVDImportance(reduction)


def shares(moments):
    return moments[0] / moments.sum(0)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("normalizer", [None, *NORMALIZERS])
def test_reductions_and_normalizers_are_those_of_torch_pruning(reduction, normalizer):
    """Its own importance on an ordinary network whose weights are such that a channel's norm is the layer's share."""
    model, twin = network(Plain), Plain()
    written, read = shares(rows(model.first)), shares(columns(model.second))
    if reduction == "posterior":
        written = read = shares(rows(model.first) + columns(model.second)) / 2
    with torch.no_grad():
        twin.first.weight[:] = written[:, None, None, None] / twin.first.weight[0].numel()
        twin.second.weight[:] = read[:, None, None] / twin.second.weight[:, 0].numel()
    same = "sum" if reduction == "posterior" else reduction
    theirs = tp.importance.GroupMagnitudeImportance(1, same, normalizer, target_types=[nn.Conv2d])
    ours = SparseVDImportance(reduction, normalizer)
    torch.testing.assert_close(ours(group_of(model)), theirs(group_of(twin)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["posterior", "max"])
def test_a_network_without_posteriors_is_ranked_by_magnitude_and_says_so(reduction):
    group = group_of(randomize_(Residual()))
    importance = SparseVDImportance(reduction)
    with pytest.warns(SparseVDWarning, match="no posterior, so its channels are ranked by magnitude"):
        scores = importance(group)
    theirs = tp.importance.GroupMagnitudeImportance(group_reduction="mean" if reduction == "posterior" else reduction)
    assert torch.equal(scores, theirs(group))
    assert torch.equal(importance(group), scores)  # it says so once
    model = Residual()
    with pytest.warns(SparseVDWarning, match="ranked by magnitude"):
        tp.pruner.BasePruner(
            model, X, SparseVDImportance(reduction), pruning_ratio=0.5, in_channel_groups={}, out_channel_groups={}
        ).step()
    assert model.first.out_channels == model.second.out_channels == 4


def test_a_group_without_posterior_is_left_alone():
    def learn(model):
        svd.sparsify_(model, include=["last"])
        with torch.no_grad():
            model.last.log_sigma2 += 1.0
        return model

    model = learn(Residual())
    assert SparseVDImportance()(group_of(model)) is not None
    assert SparseVDImportance(target_types=[nn.Linear])(group_of(model)) is None
    model = learn(Grouped())
    pruner = tp.pruner.BasePruner(model, X, SparseVDImportance(), in_channel_groups={}, out_channel_groups={})
    pruner.step()
    assert model.first.out_channels == 8 and model.second.out_channels == 4


@pytest.mark.parametrize(
    "importance",
    [SparseVDImportance, tp.importance.GroupMagnitudeImportance, tp.importance.RandomImportance],
    ids=lambda kind: kind.__name__,
)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_variances_and_gates_are_cut_with_their_weights(kind, importance):
    enable()  # for the importances of Torch-Pruning; ours needs no call
    for granularity in GRANULARITIES[kind]:
        model = network(kind, granularity)
        pruner = tp.pruner.BasePruner(
            model,
            X,
            importance(),
            pruning_ratio=0.5,
            iterative_steps=2,
            in_channel_groups={},
            out_channel_groups={},
            ignored_layers=[[*model.children()][-1]],
        )
        for _ in range(2):
            pruner.step()
            assert_cut_alike(model)
        assert model.first.out_channels == 4
        model.train()(X).sum().backward()
        svd.kl(model).backward()
        for parameter in model.parameters():
            assert parameter.grad is None or parameter.grad.shape == parameter.shape
        assert not is_variational(svd.bake_(model))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_variance_of_a_channel_counts_as_its_copies(kind):
    torch.manual_seed(0)
    shared = svd.sparsify_(randomize_(kind()), variance="channel")
    copies = svd.sparsify_(svd.bake_(copy.deepcopy(shared), {}))
    with torch.no_grad():
        for layer, whole in zip(shared.modules(), copies.modules(), strict=True):
            if isinstance(layer, Variational):
                whole.log_sigma2.copy_(layer.log_sigma2.normal_(-3))
    for model in (shared, copies):
        pruner = tp.pruner.BasePruner(
            model,
            X,
            SparseVDImportance(),
            pruning_ratio=0.5,
            in_channel_groups={},
            out_channel_groups={},
            ignored_layers=[[*model.children()][-1]],
        )
        pruner.step()
        model.train()(X).sum().backward()
    assert shared.first.out_channels == 4
    for layer, whole in zip(shared.modules(), copies.modules(), strict=True):
        if isinstance(layer, Variational):
            assert torch.equal(layer.weight, whole.weight)
            assert torch.equal(layer.log_sigma2.expand_as(layer.weight), whole.log_sigma2)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_copy_has_nothing_to_do_with_its_model(kind):
    """Also where the copy is made after tracing."""
    enable()
    model = network(kind, GRANULARITIES[kind][-1])
    group_of(model)
    twin = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())

    def cut_(network):
        group_of(network).prune([1, 5])
        assert_cut_alike(network)

    def assert_is(network, state):
        assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())

    cut_(model)
    assert_is(twin, before)
    small = copy.deepcopy(model.state_dict())
    cut_(twin)
    assert_is(model, small)
    assert_is(twin, small)


def test_what_a_layernorm_keeps_stays_in_its_order():
    """Torch-Pruning takes the order from the hash of a set, which is another where few of many channels are left."""
    enable()
    model = nn.Sequential(nn.Linear(4, 160), nn.LayerNorm(160), nn.Linear(160, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.arange(160))
    svd.sparsify_(model)
    graph = tp.DependencyGraph().build_dependency(model, torch.randn(2, 4))
    graph.get_pruning_group(model[0], tp.prune_linear_out_channels, list(range(1, 160, 2)) + list(range(0, 20))).prune()
    assert model[1].weight.tolist() == list(range(20, 160, 2))
