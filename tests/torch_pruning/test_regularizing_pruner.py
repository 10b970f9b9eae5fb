"""`SparseVDPruner` of Torch-Pruning: what it learns, cuts and leaves behind."""

import contextlib
import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torch_pruning as tp
from conftest import randomize_
from table_of_pruners import SMALLER
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.errors import SparseVDWarning
from nni_sparsevd.measure import count_macs, count_parameters
from nni_sparsevd.nn import ChannelGate, is_variational, named_posteriors
from nni_sparsevd.plugins.torch_pruning import Budget, SparseVDImportance, SparseVDPruner, SparseVDSettings
from nni_sparsevd.plugins.torch_pruning.attention import find_attentions, update_attentions_
from nni_sparsevd.regularize import regularize_under_pressure_


def network(width=24):
    torch.manual_seed(0)
    blocks = [
        (nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        (nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
    ]
    layers = [layer for block in blocks for layer in block]
    return randomize_(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 4)))


def settings(granularity="gate", **posterior):
    chosen = {"granularity": granularity, **posterior}
    return SparseVDSettings(n_train=256, learning_rate=0.05, gate_rate=1.0, posterior=chosen)


def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 1, 8, 8, generator=generator), torch.randint(4, (64,), generator=generator)


def made(model, **options):
    return SparseVDPruner(model, batch()[0], ignored_layers=[model[8]], **{"settings": settings(), **options})


def train(model, pruner, steps, every=10):
    """The loop of Torch-Pruning's README for its regularizing pruners."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-2, momentum=0.9)
    model.train()
    for step in range(steps):
        if step % every == 0:
            pruner.update_regularizer()
        images, labels = batch()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        pruner.regularize(model)
        optimizer.step()


def drawn(model, low=-6.0, high=3.0):
    """Posteriors at random, as if learnt."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("log_sigma2"):
                parameter.copy_(torch.empty(parameter.shape).uniform_(low, high, generator=generator))


def gates_of(model):
    return [module for _, module in named_posteriors(model) if isinstance(module, ChannelGate)]


def below(model, threshold):
    return [int((gate.log_alpha() < threshold).sum()) for _, gate in named_posteriors(model)]


def vision_transformer():
    torch.manual_seed(0)
    return randomize_(timm.create_model("deit_tiny_patch16_224", num_classes=10, img_size=64, depth=4))


@pytest.mark.parametrize(
    ("granularity", "variance"), [("weight", "weight"), ("gate", "weight"), ("both", "weight"), ("both", "channel")]
)
@pytest.mark.filterwarnings("ignore:.*nothing was removed:nni_sparsevd.errors.SparseVDWarning")
def test_it_learns_and_leaves_an_ordinary_network(granularity, variance):
    model = network()
    keys, kinds = sorted(model.state_dict()), [type(module) for module in model.modules()]
    pruner = made(model, settings=settings(granularity, variance=variance))
    assert all(module.training for module in model.modules())
    before = pruner.kl().item()
    train(model, pruner, 30)
    assert pruner.kl().item() < before
    model.eval()
    pruner.step()
    assert sorted(model.state_dict()) == keys and [type(module) for module in model.modules()] == kinds
    model.train()
    images = batch()[0]
    assert torch.equal(model(images), model(images))
    model(images).sum().backward()


@pytest.mark.filterwarnings("ignore:.*no gradient at any variance:nni_sparsevd.errors.SparseVDWarning")
def test_the_regularizer_is_the_gradient_of_kl_over_n_after_a_warm_up():
    model = network()
    chosen = settings("both").model_copy(update={"warmup": 0.5})
    pruner = made(model, settings=chosen, training_steps=8)
    for step in range(6):
        twin = copy.deepcopy(model)
        twin.zero_grad()
        (min(1.0, step / 4) / 256 * svd.kl(twin)).backward()
        model.zero_grad()
        pruner.regularize(model)
        if step == 0:
            assert model[0].weight.grad is None
        else:
            torch.testing.assert_close(model[0].weight.grad, twin[0].weight.grad)
            assert model[0].weight.grad.any()


def test_the_threshold_cuts_exactly_what_has_reached_it():
    model = network()
    pruner = made(model, settings=settings(threshold=1.0))
    drawn(model)
    kept = below(model, 1.0)
    assert all(0 < count < 24 for count in kept)
    pruner.step()
    assert [model[0].out_channels, model[3].out_channels] == kept


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "convnext_atto", "deit_tiny_patch16_224"])
def test_gates_cut_exactly(name):
    """What the variational network computes in evaluation mode is what comes out."""
    torch.manual_seed(0)
    options = {"img_size": 64} if "deit" in name else {}
    model = randomize_(timm.create_model(name, num_classes=10, **options, **SMALLER.get(name, {}))).double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    chosen = settings(threshold=0.0)
    pruner = SparseVDPruner(model, x, ignored_layers=[model.get_classifier()], settings=chosen)
    drawn(model)
    size = count_parameters(model)
    before = model.eval()(x)
    pruner.step()
    after = model.eval()(x)
    assert count_parameters(model) < 0.9 * size
    assert (after - before).abs().max() < 1e-10 * before.abs().max()


def test_the_best_channel_stays_and_rounding_keeps_more():
    model = network()
    pruner = made(model)
    drawn(model, low=10, high=12)
    pruner.step()
    assert model[0].out_channels == model[3].out_channels == 1
    model = network()
    pruner = made(model, round_to=8, settings=settings(threshold=1.0))
    drawn(model, low=-2.0, high=4.0)
    kept = below(model, 1.0)
    pruner.step()
    assert [model[0].out_channels, model[3].out_channels] == [-(-count // 8) * 8 for count in kept]
    assert model[0].out_channels < 24


def test_a_ratio_and_steps_go_as_with_every_pruner():
    model = network()
    pruner = made(model, pruning_ratio=0.5, iterative_steps=2)
    drawn(model)
    pruner.step()
    assert model[0].out_channels == 18 and is_variational(model)
    train(model, pruner, 3)  # goes on with what is left
    pruner.step()
    assert model[0].out_channels == model[3].out_channels == 12 and not is_variational(model)


@pytest.mark.parametrize("ratio", [None, 0.5])
def test_a_step_too_many_removes_nothing_and_says_so(ratio):
    model = network()
    pruner = made(model, pruning_ratio=ratio, iterative_steps=1, settings=settings(threshold=1.0))
    drawn(model)
    pruner.step()
    size = count_parameters(model)
    with pytest.warns(SparseVDWarning, match="this one removes nothing"):
        assert pruner.step() is None
    with pytest.warns(SparseVDWarning, match="this one removes nothing"):
        assert list(pruner.step(interactive=True)) == []
    assert count_parameters(model) == size


def test_options_that_are_none_or_empty_are_not_given():
    for options in ({"pruning_ratio_dict": None}, {"pruning_ratio_dict": {}}, {"num_heads": None, "round_to": None}):
        model = network()
        pruner = made(model, settings=settings(threshold=1.0), **options)
        drawn(model)
        kept = below(model, 1.0)
        pruner.step()
        assert [model[0].out_channels, model[3].out_channels] == kept


def test_layers_of_an_ignored_type_stay():
    model = network()
    pruner = SparseVDPruner(model, batch()[0], ignored_layers=[nn.Linear], settings=settings("weight"))
    drawn(model, low=5, high=6)
    pruner.step()
    assert model[8].out_features == 4 and model[0].out_channels == 1


@pytest.mark.filterwarnings("ignore:.*left without a posterior. scale:nni_sparsevd.errors.SparseVDWarning")
@pytest.mark.parametrize("form", [list, dict])
def test_a_budget_is_met_with_a_parameter_that_belongs_to_no_layer(form):
    """The copies that are cut and measured know the parameter as the network itself does."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
            self.scale = nn.Parameter(torch.ones(16, 1, 1, 2))  # by itself, Torch-Pruning takes the last dimension

        def forward(self, x):
            return self.last(F.relu(self.first(x) * self.scale.mean(3)))

    model = Scaled()
    x = batch()[0]
    dense = count_macs(model, x[:1])
    pruner = SparseVDPruner(
        model,
        x,
        ignored_layers=[model.last],
        unwrapped_parameters=form({model.scale: 0}.items()),
        settings=settings("weight"),
        budget=Budget(fraction=0.5),
    )
    drawn(model)
    pruner.step()
    assert model.first.out_channels == len(model.scale) == 8
    assert pruner.arrival.reached == count_macs(model, x[:1]) == 0.5 * dense


def test_what_the_caller_has_cut_goes_on_learning():
    model = network()
    pruner = made(model, pruning_ratio=0.5, iterative_steps=2)
    drawn(model)
    for group in pruner.step(interactive=True):
        group.prune()
    gates = gates_of(model)
    before = [gate.log_sigma2.detach().clone() for gate in gates]
    model(batch()[0]).sum().backward()
    pruner.regularize(model)
    assert all(not torch.equal(gate.log_sigma2, value) for gate, value in zip(gates, before, strict=True))


def test_groups_can_be_cut_by_the_caller():
    model = network()
    pruner = made(model, settings=settings(threshold=1.0))
    drawn(model)
    kept = below(model, 1.0)
    assert kept[0] < 24
    for group in pruner.step(interactive=True):
        group.prune()
    pruner.finish()
    assert [model[0].out_channels, model[3].out_channels] == kept and not is_variational(model)


@pytest.mark.parametrize("kind", ["macs", "parameters"])
@pytest.mark.parametrize("fraction", [0.5, 0.2])
def test_a_budget_is_met(kind, fraction):
    model = network(64)
    dense = {"macs": count_macs(model, batch()[0][:1]), "parameters": count_parameters(model)}[kind]
    pruner = made(model, training_steps=40, budget=Budget(kind=kind, fraction=fraction))
    train(model, pruner, 40)
    pruner.step()
    left = {"macs": count_macs(model, batch()[0][:1]), "parameters": count_parameters(model)}[kind]
    assert pruner.arrival.reached == left and pruner.arrival.dense == dense
    assert abs(pruner.arrival.relative_error) < 0.03
    assert left / dense == pytest.approx(fraction, rel=0.03)


@pytest.mark.filterwarnings("ignore:.*the latency is missed:nni_sparsevd.errors.SparseVDWarning")  # on a busy machine
def test_a_latency_is_met_by_measuring():
    model = network(96)
    budget = Budget(kind="latency", fraction=0.5)
    pruner = SparseVDPruner(
        model, torch.randn(2, 1, 32, 32), ignored_layers=[model[8]], settings=settings(), budget=budget
    )
    drawn(model)
    pruner.step()
    assert 0 < pruner.arrival.reached < pruner.arrival.dense  # how close is the machine's matter
    assert model[0].out_channels < 96


def test_the_pressure_follows_the_edge_of_the_budget():
    model = network(64)
    pruner = made(model, training_steps=100, budget=Budget(fraction=0.5))
    pruner.update_regularizer()
    assert pruner._controller.pressure == 1.0  # nothing is due at the start
    pruner._steps_done = 50
    pruner.update_regularizer()
    pressed = pruner._controller.pressure
    assert pressed > 1.0  # nothing has moved by half of the time
    drawn(model, low=9, high=12)
    pruner.update_regularizer()
    assert pruner._controller.pressure < pressed  # everything would go


def test_a_loop_that_never_asks_the_controller_is_pressed_all_the_same():
    """The other pruners' loops do not call update_regularizer: then regularize looks, 24 times in the training."""
    pressures = []
    for every in (2, 10**6):
        model = network()
        pruner = made(model, training_steps=48, budget=Budget(fraction=0.5))
        if every > 2:
            pruner.update_regularizer = lambda: None
        train(model, pruner, 30, every)
        pressures.append(pruner._controller.pressure)
    assert pressures[0] == pressures[1] > 1.0


@pytest.mark.parametrize("budget", [None, Budget(fraction=0.5)])
def test_a_posterior_that_was_never_trained_is_named(budget):
    model = network()
    pruner = made(model, budget=budget)
    with pytest.warns(svd.errors.SparseVDWarning, match="dispensable" if budget else "no channel has reached"):
        pruner.step()


def test_gates_are_pressed_and_weights_are_not():
    model = network(64)
    pruner = made(model, settings=settings("both"), training_steps=100, budget=Budget(fraction=0.5))
    regularize_under_pressure_(model, 0.5, pressure=3.0)
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad.clone()
    model.zero_grad()
    gates = sum(gate.kl() for gate in gates_of(model))
    (0.5 * (pruner.kl() + 2 * gates)).backward()
    assert any(".gate." in name for name in gradients) and "0.log_sigma2" in gradients
    torch.testing.assert_close(gradients, {name: model.get_parameter(name).grad for name in gradients})


def test_the_kl_of_a_costly_layer_weighs_more():
    model = network()
    SparseVDPruner(model, batch()[0], settings=settings("weight"), budget=Budget(fraction=0.5))
    layers = (model[0], model[3], model[8])
    first, second, last = (layer.kl_weight for layer in layers)
    assert first == pytest.approx(second) and first == pytest.approx(64 * last)  # 8 x 8 positions against a single one
    sizes = [layer.weight.numel() for layer in layers]
    assert first * sizes[0] + second * sizes[1] + last * sizes[2] == pytest.approx(sum(sizes))


def test_a_channel_costs_what_writes_and_what_reads_it():
    model = network()  # two 3x3 convolutions, then a linear layer
    SparseVDPruner(model, batch()[0], settings=settings("gate"), budget=Budget(fraction=0.5), ignored_layers=[model[8]])
    first, second = gates_of(model)
    spent = [layer.weight.numel() * places for layer, places in ((model[0], 64), (model[3], 64), (model[8], 1))]
    expected = (spent[0] + spent[1]) / len(first.mu) / ((spent[1] + spent[2]) / len(second.mu))
    assert first.kl_weight / second.kl_weight == pytest.approx(expected**0.5)
    assert first.kl_weight * len(first.mu) + second.kl_weight * len(second.mu) == pytest.approx(
        len(first.mu) + len(second.mu)
    )


@pytest.mark.parametrize("ratio", [None, 0.25])
def test_attention_needs_no_plumbing(ratio):
    model = vision_transformer()
    options = {} if ratio is None else {"prune_num_heads": True, "head_pruning_ratio": 0.34, "prune_head_dims": False}
    pruner = SparseVDPruner(
        model,
        torch.randn(2, 3, 64, 64),
        pruning_ratio=ratio,
        ignored_layers=[model.head],
        settings=settings("both", threshold=0.5),
        **options,
    )
    drawn(model)
    pruner.step()
    attention = model.blocks[0].attn
    assert attention.qkv.out_features == 3 * attention.num_heads * attention.head_dim
    assert attention.attn_dim == attention.proj.in_features
    assert ratio is None or attention.num_heads < 3
    model.train()(torch.randn(2, 3, 64, 64)).sum().backward()


@pytest.mark.parametrize("fused", [True, False])
def test_heads_and_their_dimensions_go_exactly(fused):
    """Gates of whole heads and of single dimensions have closed: on queries and values, so on the scores, too."""
    model = vision_transformer().double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for block in model.blocks:
        block.attn.fused_attn = fused
    pruner = SparseVDPruner(model, x, ignored_layers=[model.head], settings=settings())
    gate = model.blocks[2].attn.qkv.gate
    dimensions = torch.arange(192)
    expected_places = torch.cat([dimensions, torch.full_like(dimensions, -1), dimensions])  # queries, keys, values
    assert torch.equal(gate.read_places(model.blocks[2].attn.qkv), expected_places)
    with torch.no_grad():
        gate.mu.uniform_(0.5, 1.5)
        gate.log_sigma2.view(3, 64)[1] = 9.0  # a head
        gate.log_sigma2.view(3, 64)[:, ::4] = 9.0  # every fourth dimension of all
        gate.log_sigma2.view(3, 64)[0, :32] = 9.0  # more of one head: these stay, for the other's sake
    before = model.eval()(x)
    pruner.step()
    attention = model.blocks[2].attn
    assert (attention.num_heads, attention.head_dim) == (2, 48)
    assert attention.qkv.out_features == 3 * 96 and attention.proj.in_features == 96
    assert model.blocks[0].attn.num_heads == 3
    assert (model.eval()(x) - before).abs().max() < 1e-10 * before.abs().max()


@pytest.mark.parametrize("budget", [None, Budget(fraction=0.1)])
def test_limits_hold_where_no_ratio_is_given(budget):
    model = network()
    pruner = made(model, max_pruning_ratio=0.25, budget=budget)
    drawn(model, low=5, high=6)
    with pytest.warns(SparseVDWarning, match="is missed") if budget else contextlib.nullcontext():
        pruner.step()
    assert model[0].out_channels == model[3].out_channels == 18


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"prune_num_heads": False}, (3, 48)),
        ({"prune_head_dims": False}, (2, 64)),
        ({"max_pruning_ratio": 0.34}, (2, 64)),  # a head is a third; no dimension may go beside it
        ({"max_pruning_ratio": 0.1}, (3, 58)),
    ],
)
def test_heads_or_their_dimensions_stay_when_told_to(options, expected):
    model = vision_transformer()
    pruner = SparseVDPruner(
        model, torch.randn(2, 3, 64, 64), ignored_layers=[model.head], settings=settings(), **options
    )
    with torch.no_grad():
        gate = model.blocks[2].attn.qkv.gate
        gate.log_sigma2.view(3, 64)[1] = 9.0  # a head
        gate.log_sigma2.view(3, 64)[:, ::4] = 9.0  # every fourth dimension of all
    pruner.step()
    attention = model.blocks[2].attn
    assert (attention.num_heads, attention.head_dim) == expected
    model(torch.randn(2, 3, 64, 64))


class GroupedQueries(nn.Module):
    """Attention whose heads of keys and values serve two heads of queries each, in the operations of Transformers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 16)
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.o_proj = nn.Linear(16, 3)
        self.heads, self.groups = 4, 2

    def forward(self, x):
        x = self.embed(x)
        q = self.split(self.q_proj(x), self.heads)
        k, v = self.split(self.k_proj(x), self.groups), self.split(self.v_proj(x), self.groups)
        scores = (q @ self.repeat(k).transpose(2, 3)).softmax(-1)
        return self.o_proj((scores @ self.repeat(v)).transpose(1, 2).reshape(*x.shape[:2], -1).contiguous())

    def split(self, x, heads):
        return x.view(*x.shape[:2], heads, -1).transpose(1, 2)

    def repeat(self, x):
        batch, groups, length, dims = x.shape
        copies = self.heads // groups
        return x[:, :, None].expand(batch, groups, copies, length, dims).reshape(batch, self.heads, length, dims)


def test_grouped_queries_keep_their_heads():
    torch.manual_seed(0)
    model = GroupedQueries()
    x = torch.randn(2, 7, 5)
    num_heads = {model.q_proj: 4, model.k_proj: 2, model.v_proj: 2}
    ignored = [model.embed, model.o_proj]
    pruner = SparseVDPruner(
        model, x, num_heads=dict(num_heads), ignored_layers=ignored, settings=settings("weight", threshold=0.0)
    )
    drawn(model, low=-12, high=-8)
    with torch.no_grad():
        for projection in num_heads:
            projection.log_sigma2.view(-1, 4, 16)[:, 1] = 3.0  # one dimension of each head
            projection.log_sigma2[:4] = 3.0  # all of one head
    pruner.step()
    assert [len(projection.weight) for projection in num_heads] == [12, 6, 6]
    assert [pruner.num_heads[projection] for projection in num_heads] == [4, 2, 2]
    model(x)


def test_a_head_that_is_all_stays():
    model = vision_transformer()
    pruner = SparseVDPruner(model, torch.randn(2, 3, 64, 64), ignored_layers=[model.head], settings=settings())
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.gate.log_sigma2.uniform_(8, 9)
    pruner.step()
    assert {(block.attn.num_heads, block.attn.head_dim) for block in model.blocks} == {(1, 1)}
    model(torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize("fused", [True, False])
def test_cutting_the_dimensions_of_heads_keeps_the_temperature(fused):
    """Dimensions of queries, keys and values that are zero go without a trace."""
    model = vision_transformer().double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    attention = model.blocks[0].attn
    attention.fused_attn = fused
    dead = [head * 64 + place for head in range(3) for place in range(0, 64, 2)]
    rows = [part * 192 + index for part in range(3) for index in dead]
    with torch.no_grad():
        attention.qkv.weight[rows] = 0
        attention.qkv.bias[rows] = 0
    before, attentions = model(x), find_attentions(model)
    graph = tp.DependencyGraph().build_dependency(model, x)
    graph.get_pruning_group(attention.proj, tp.prune_linear_in_channels, dead).prune()
    update_attentions_(attentions, {})
    assert attention.head_dim == 32
    assert (model.eval()(x) - before).abs().max() < 1e-10 * before.abs().max()


def test_what_is_pruned_is_saved_and_loaded_without_torch_pruning(tmp_path):
    torch.manual_seed(0)
    model = randomize_(timm.create_model("resnet18", num_classes=10))
    x = torch.randn(2, 3, 64, 64)
    pruner = SparseVDPruner(model, x, ignored_layers=[model.fc], settings=settings(threshold=1.0))
    drawn(model)
    pruner.step()
    assert model.layer1[0].conv1.out_channels < 64
    svd.save(model, tmp_path / "small.safetensors", name="resnet18", arguments={"num_classes": 10})
    torch.testing.assert_close(svd.load(tmp_path / "small.safetensors")(x), model.eval()(x))


def test_the_readmes_recipe_with_one_changed_line():
    """Torch-Pruning's README: sparse training, its pruner replaced; the rest of the loop is `train`."""
    for make in (
        lambda model, x: tp.pruner.GroupNormPruner(
            model,
            x,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[model[8]],
        ),
        lambda model, x: SparseVDPruner(
            model,
            x,
            importance=SparseVDImportance(),
            pruning_ratio=0.5,
            ignored_layers=[model[8]],
            settings=settings(),
        ),
    ):
        model = network()
        pruner = make(model, batch()[0])
        train(model, pruner, 4, every=2)
        pruner.step()
        assert model[0].out_channels == model[3].out_channels == 12
        model(batch()[0])


@pytest.mark.parametrize(
    "options",
    [
        {"importance": tp.importance.GroupMagnitudeImportance()},
        {"importance": SparseVDImportance(normalizer="mean"), "budget": Budget(fraction=0.5)},
        {"importance": SparseVDImportance(group_reduction="sum")},
        {"head_pruning_ratio": 0.5},
    ],
)
def test_who_decides_is_one(options):
    model = network()
    with pytest.raises(svd.SparseVDError, match="pruning_ratio"):
        made(model, **options)
    assert not is_variational(model)
    made(model, pruning_ratio=0.5, **{key: value for key, value in options.items() if key != "budget"})


def test_a_network_that_learns_goes_through_the_hosts_own_files(tmp_path):
    """`tp.state_dict` takes every public attribute, and `tp.load_state_dict` sets it again."""
    model, fresh = network(), network()
    pruner = made(model, pruning_ratio=0.5, iterative_steps=2)
    drawn(model)
    pruner.step()
    torch.save(tp.state_dict(model), tmp_path / "state.pth")
    made(fresh)
    tp.load_state_dict(fresh, torch.load(tmp_path / "state.pth", weights_only=False))
    images = batch()[0]
    assert torch.equal(fresh.eval()(images), model.eval()(images))


def test_mistakes_are_named():
    x = batch()[0]
    with pytest.raises(svd.SparseVDError, match="global_prunning is no option; known are global_pruning"):
        SparseVDPruner(network(), x, global_prunning=True)
    model = network()
    with pytest.raises(svd.SparseVDError, match="without a pruning_ratio"):
        SparseVDPruner(model, x, pruning_ratio=0.5, budget=Budget(fraction=0.5))
    assert not is_variational(model)
    with pytest.raises(svd.SparseVDError, match="n_train"):
        SparseVDPruner(network(), x).regularize()
