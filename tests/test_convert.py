"""`sparsify_` and `bake_`: a pair that undoes itself, and evaluation mode is what baking makes permanent."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import randomize_
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import MaskError, ModelError, SettingError, SparseVDWarning
from nni_sparsevd.nn import (
    VARIATIONAL,
    ChannelGate,
    Variational,
    gate_sites,
    is_convertible,
    is_variational,
    named_posteriors,
)
from nni_sparsevd.settings import PosteriorSettings

NOTHING_PRUNED = -60.0  # an initial log sigma^2 at which every weight that is not zero is kept


class Mixed(nn.Module):
    """A layer of most kinds, with norms, a residual sum and a layer that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 6)
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.block = nn.Sequential(nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 1))
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        word = self.words(torch.tensor([2]))[..., None, None]
        x = self.norm(self.stem(x)).relu()
        x = self.up(self.block(x) + x * word).relu().mean((2, 3))
        return self.head(self.mix(self.mix(x)).relu())


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return randomize_(Mixed())


def image(size: int = 8, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def run(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def disturb_(model: nn.Module) -> nn.Module:
    """Posteriors as after training: means and variances all over the place, about half of everything removed."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, found in named_posteriors(model):
            theta = found.mu if isinstance(found, ChannelGate) else found.weight
            if isinstance(found, ChannelGate):
                theta.copy_(1 + 0.5 * torch.randn(theta.shape, generator=generator))
            noise = 3 * torch.randn(theta.shape, generator=generator)
            found.log_sigma2.copy_((theta.square() + 1e-12).log() + found.threshold + noise)
    return model


# Identity.


@pytest.mark.parametrize("granularity", ["weight", "gate", "both"])
@pytest.mark.parametrize("make", [mixed, lambda: randomize_(timm.create_model("resnet18", num_classes=4))])
def test_baking_undoes_sparsifying(make: Callable[[], nn.Module], granularity: str) -> None:
    model = make().train()
    x = image(32)
    classes = [(name, type(module)) for name, module in model.named_modules()]
    parameters = {name: (parameter, parameter.clone()) for name, parameter in model.named_parameters()}
    keys, attributes = list(model.state_dict()), {name: set(vars(m)) for name, m in model.named_modules()}
    hooks = [len(m._forward_hooks) for m in model.modules()]
    expected = run(copy.deepcopy(model), x)
    settings = {"granularity": granularity, "init_log_sigma2": NOTHING_PRUNED}
    assert svd.sparsify_(model, example_inputs=x, **settings) is model and is_variational(model)
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(run(copy.deepcopy(model), x), expected, rtol=0, atol=0)
    assert svd.bake_(model) is model and not is_variational(model)
    assert [(name, type(module)) for name, module in model.named_modules()] == classes
    assert list(model.state_dict()) == keys
    assert {name: set(vars(m)) for name, m in model.named_modules()} == attributes
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    for name, parameter in model.named_parameters():  # the same objects: an optimizer made before still holds them
        assert parameter is parameters[name][0] and torch.equal(parameter, parameters[name][1])
    assert torch.equal(run(model, x), expected)


def test_converting_draws_noise_in_training_only() -> None:
    model = svd.sparsify_(mixed(), init_log_sigma2=-2.0)
    assert torch.equal(run(model, image()), run(model, image()))
    model.train()
    model.norm.eval()
    assert not torch.equal(model(image()), model(image()))


# Evaluation mode is the baked network.


@pytest.mark.parametrize("prior", ["log_uniform", "ard"])
def test_evaluation_is_exactly_the_baked_network_for_weights(prior: str) -> None:
    model = disturb_(svd.sparsify_(mixed(), prior=prior))
    expected = run(model, image())
    zeros = {name: ~layer.mask() for name, layer in named_posteriors(model)}
    assert all(zero.any() and not zero.all() for zero in zeros.values())
    baked = svd.bake_(copy.deepcopy(model))
    assert torch.equal(run(baked, image()), expected)
    for name, zero in zeros.items():
        weight = baked.get_submodule(name).weight
        assert torch.equal(weight == 0, zero) and not torch.signbit(weight[zero]).any()
    assert not torch.equal(run(svd.bake_(copy.deepcopy(model), {}), image()), expected)  # without the masks it differs


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mixed": mixed,
    "resnet18": lambda: timm.create_model("resnet18", num_classes=4),
    "efficientnet_b0": lambda: timm.create_model("efficientnet_b0", num_classes=4),
    "mobilenetv3": lambda: timm.create_model("mobilenetv3_small_050", num_classes=4),
    "deit": lambda: timm.create_model("deit_tiny_patch16_224", num_classes=4, img_size=32, depth=2),
}


@pytest.mark.parametrize(
    ("name", "granularity"), [*((name, "gate") for name in NETWORKS), ("mixed", "both"), ("mobilenetv3", "both")]
)
def test_evaluation_is_the_baked_network_for_gates(name: str, granularity: str) -> None:
    model = randomize_(NETWORKS[name]()).double()
    x = image(32, 2).double()
    before = run(copy.deepcopy(model), x)
    svd.sparsify_(model, granularity=granularity, example_inputs=x)
    with torch.no_grad():  # not as much as above: a deep network would be silent
        for number, (_, found) in enumerate(named_posteriors(model)):
            if isinstance(found, ChannelGate):
                found.mu.copy_(torch.linspace(0.6, 1.3, len(found.mu)))
                found.log_sigma2[number % 3 :: 5] = 9.0
            else:
                found.log_sigma2[:, :: found.weight.shape[1]] = 9.0
    removed = [int((~gate.mask()).sum()) for _, _, gate in gate_sites(model)]
    assert sum(removed) > 0
    expected = run(model, x)
    baked = svd.bake_(copy.deepcopy(model))
    assert not is_variational(baked) and list(baked.state_dict()) == list(NETWORKS[name]().state_dict())
    found = run(baked, x)
    assert (found - expected).abs().max() < 1e-10 * expected.abs().max()
    assert (expected - before).abs().max() > 1e-6 * expected.abs().max()


@pytest.mark.parametrize("name", ["mixed", "mobilenetv3"])
def test_a_silent_gate_silences_its_channel_at_every_reader(name: str) -> None:
    """What makes gates shrinkable: whatever the channel's writers compute afterwards, the output stays the same."""
    model = randomize_(NETWORKS[name]()).double()
    x = image(32, 2).double()
    svd.sparsify_(model, granularity="gate", example_inputs=x)
    _, _, gate = next(iter(gate_sites(model)))
    with torch.no_grad():
        gate.log_sigma2[1] = 20.0
        expected = run(model, x)
        for name_ in gate.writers:
            writer = model.get_submodule(name_)
            writer.weight[1] += 1.0
    assert torch.equal(run(model, x), expected)
    with torch.no_grad():
        writer.weight[0] += 1.0
    assert not torch.equal(run(model, x), expected)
    small, plan = svd.shrink(model, x)
    assert plan.removed >= 1 and is_variational(model) and not is_variational(small)


def test_norms_with_an_activation_inside_are_gated_between_the_two() -> None:
    model = randomize_(timm.create_model("mobilenetv3_small_050", num_classes=4))
    svd.sparsify_(model, granularity="gate", example_inputs=image(32))
    inner = [(name, site) for name, site, _ in gate_sites(model) if hasattr(model.get_submodule(name), "act")]
    assert inner and all(site is model.get_submodule(name).drop for name, site in inner)


def test_deepcopied_gates_work_on_their_own() -> None:
    model = disturb_(svd.sparsify_(mixed(), granularity="both", example_inputs=image()))
    twin = copy.deepcopy(model)
    expected = run(model, image())
    assert torch.equal(run(twin, image()), expected)
    originals = {id(module) for module in model.modules()}
    assert not originals & {id(module) for module in twin.modules()}
    with torch.no_grad():
        for _, _, gate in gate_sites(twin):
            gate.mu.add_(0.5)
    assert torch.equal(run(model, image()), expected) and not torch.equal(run(twin, image()), expected)
    svd.bake_(twin)
    assert torch.equal(run(model, image()), expected) and is_variational(model)
    assert all("gate" not in name for name, _ in twin.named_modules())


def test_one_gate_a_coupled_group() -> None:
    model = svd.sparsify_(mixed(), granularity="gate", example_inputs=image())
    gates = {name: gate for name, _, gate in gate_sites(model)}
    assert gates["norm"] is gates["block.3"]  # the two ends of the residual sum
    # the word only scales one side of the sum: its factor is covered by the norm's gate
    assert gates["up"] is gates["mix"]  # what runs twice reads its own output
    assert set(gates) == {"norm", "block.3", "block.1", "up", "mix"}
    assert {type(module) for _, module in named_posteriors(model)} == {ChannelGate}


# Which layers.

ALL = {"words", "stem", "block.0", "block.3", "up", "mix", "head"}
CHOICES = [
    ({}, ALL),
    ({"include": ["head"]}, {"head"}),
    ({"include": ["block.*"]}, {"block.0", "block.3"}),
    ({"include": ["Linear"]}, {"mix", "head"}),
    ({"include": ["_ConvNd"]}, {"stem", "block.0", "block.3", "up"}),
    ({"include": ["Conv2d", "head"]}, {"stem", "block.0", "block.3", "head"}),
    ({"exclude": ["head"]}, ALL - {"head"}),
    ({"exclude": ["*.0", "Embedding"]}, ALL - {"block.0", "words"}),
    ({"include": ["block.*"], "exclude": ["block.3"]}, {"block.0"}),
]


@pytest.mark.parametrize(("settings", "converted"), CHOICES)
def test_layers_are_chosen_by_name_pattern_or_type(settings: dict[str, list[str]], converted: set[str]) -> None:
    model = svd.sparsify_(mixed(), **settings)
    assert {name for name, _ in named_posteriors(model)} == converted
    for name, module in model.named_modules():
        assert isinstance(module, Variational) == (name in converted)
    assert {type(m) for _, m in named_posteriors(model)} <= set(VARIATIONAL.values())


def test_a_gate_needs_all_of_its_writers() -> None:
    model = svd.sparsify_(mixed(), granularity="gate", example_inputs=image(), exclude=["stem"])
    assert {name for name, _, _ in gate_sites(model)} == {"block.1", "up", "mix"}


def test_settings_reach_every_layer() -> None:
    chosen = PosteriorSettings(prior="ard", estimator="weight", init_log_sigma2=-7.0, threshold=1.5)
    model = svd.sparsify_(mixed(), chosen)
    for _, layer in named_posteriors(model):
        assert layer.settings == chosen and layer.threshold == 1.5 and (layer.log_sigma2 == -7).all()


def test_kl_weights() -> None:
    weights = {"Linear": 2.0, "block.*": 3.0, "head": 0.0}
    model = svd.sparsify_(mixed(), kl_weights=weights)
    found = {name: layer.kl_weight for name, layer in named_posteriors(model)}
    expected = {"words": 1.0, "stem": 1.0, "block.0": 3.0, "block.3": 3.0, "up": 1.0, "mix": 2.0, "head": 0.0}
    assert found == expected
    plain = svd.sparsify_(mixed())
    by_hand = sum(expected[name] * layer.kl() for name, layer in named_posteriors(plain))
    torch.testing.assert_close(svd.kl(model), by_hand)
    gated = svd.sparsify_(mixed(), granularity="gate", example_inputs=image(), kl_weights={"block.0": 4.0})
    assert {name: gate.kl_weight for name, _, gate in gate_sites(gated)} == {
        "norm": 1.0,
        "block.3": 1.0,
        "block.1": 4.0,
        "up": 1.0,
        "mix": 1.0,
    }


class TwoWriters(nn.Module):
    """Two layers that write the same channels, and a head that is tied to a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 5)
        self.back = nn.Linear(5, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(self.back((self.left(x) + self.right(x)).relu()))


def test_a_kl_weight_reaches_a_posterior_by_any_of_its_layers() -> None:
    """Only the name of the first layer counted."""
    model = svd.sparsify_(TwoWriters(), kl_weights={"head": 3.0})
    assert model.table.kl_weight == model.head.kl_weight == 3.0
    ids = torch.zeros(2, 3, dtype=torch.long)
    model = svd.sparsify_(TwoWriters(), granularity="gate", example_inputs=ids, kl_weights={"right": 2.0})
    assert model.left.gate is model.right.gate and model.left.gate.kl_weight == 2.0


def test_estimators_by_layer() -> None:
    model = svd.sparsify_(mixed(), estimator="local_bf16", estimators={"Linear": "weight", "head": "local"})
    found = {name: layer.settings.estimator for name, layer in named_posteriors(model)}
    cheap = dict.fromkeys(("words", "stem", "block.0", "block.3", "up"), "local_bf16")
    assert found == {**cheap, "mix": "weight", "head": "local"}


# Refusals leave the network as it was.


class OwnLinear(nn.Linear):
    pass


REFUSED = {
    "unknown pattern": ({"include": ["hed"]}, SettingError, r"no module of Mixed matches 'hed'; its layers are: words"),
    "unknown exclude": ({"exclude": ["nothing.*"]}, SettingError, r"matches 'nothing\.\*'"),
    "unknown kl weight": ({"kl_weights": {"hed": 2.0}}, SettingError, "matches 'hed'"),
    "unknown layer of an estimator": ({"estimators": {"hed": "weight"}}, SettingError, "matches 'hed'"),
    "unknown estimator": ({"estimators": {"head": "global"}}, SettingError, "estimators.head"),
    "unknown key": ({"threshhold": 3.0}, SettingError, "threshhold"),
    "wrong value": ({"granularity": "channel"}, SettingError, "granularity"),
    "out of range": ({"threshold": -1.0}, SettingError, "threshold"),
    "both": ({"settings": PosteriorSettings(), "threshold": 2.0}, SettingError, r"not both \(found threshold\)"),
    "gate without inputs": ({"granularity": "gate"}, SettingError, "pass example_inputs"),
    "both without inputs": ({"granularity": "both"}, SettingError, "pass example_inputs"),
    "nothing selected": ({"include": ["BatchNorm2d"]}, ModelError, "no layer to convert.*known are .*Conv2d"),
    "no group": (
        {"granularity": "gate", "include": ["head"], "example_inputs": image()}, ModelError, "no channel group",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    settings, error, message = REFUSED[case]
    model = mixed()
    keys = list(model.state_dict())
    with pytest.raises(error, match=message):
        svd.sparsify_(model, **settings)
    assert not is_variational(model) and list(model.state_dict()) == keys


class WithTable(nn.Module):
    """Two layers, and then a table that cannot carry a posterior."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
        self.table = nn.Embedding(5, 4, max_norm=1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize(("granularity", "padded"), [("weight", False), ("weight", True), ("both", False)])
@pytest.mark.filterwarnings("ignore::nni_sparsevd.errors.SparseVDWarning")
def test_evaluation_without_gradients_is_the_baked_transformer(granularity: str, padded: bool) -> None:
    """torch's fused kernel read the weights of the two linear layers as they were, removed ones too."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2), torch.randn(2, 5, 8)
    svd.sparsify_(model, granularity=granularity, example_inputs=x)
    with torch.no_grad():
        for _, found in named_posteriors(model):
            theta = found.weight if isinstance(found, Variational) else found.mu
            found.log_sigma2.copy_(theta.square().log() + 3 + 2 * torch.randn_like(theta))
    model.eval()
    ends = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None
    baked = svd.bake_(copy.deepcopy(model))
    assert not any(module._forward_pre_hooks for module in baked.modules())
    with torch.no_grad():
        for inputs in (x, 2 * x):
            evaluated = model(inputs, src_key_padding_mask=ends)
            torch.testing.assert_close(evaluated, baked(inputs, src_key_padding_mask=ends), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gate", ["gaussian", "log_normal"])
def test_a_late_refusal_leaves_the_network_as_it_was(gate: str) -> None:
    """The layers before the one that cannot carry a posterior stayed variational, and a second call was refused."""
    torch.manual_seed(0)
    model = WithTable()
    state, classes = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    chosen = {"granularity": "both", "gate": gate, "threshold": 0.0, "example_inputs": torch.zeros(1, 4)}
    with pytest.raises(SettingError, match="max_norm"):
        svd.sparsify_(model, **chosen)
    assert [type(module) for module in model.modules()] == classes and list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert not any(module._forward_hooks for module in model.modules())
    svd.sparsify_(model, exclude=["Embedding"], **chosen)


def test_converting_twice_is_refused() -> None:
    model = svd.sparsify_(mixed())
    with pytest.raises(ModelError, match="Mixed is variational already"):
        svd.sparsify_(model)
    gated = svd.sparsify_(mixed(), granularity="gate", example_inputs=image())
    with pytest.raises(ModelError, match="variational already"):
        svd.sparsify_(gated)


class PaddedConvolution(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 0, 1, 0)), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class ScaledLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.weight, self.bias)


class SquaringLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.square(), self.weight, self.bias)


class PaddedWithOnes(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 0, 1, 0), value=1.0), self.weight, self.bias)


class Attached(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else super().forward(x).relu()


@pytest.mark.parametrize("make", [ScaledLinear, SquaringLinear, Attached, lambda *sizes: PaddedWithOnes(*sizes, 1)])
def test_a_layer_that_does_something_else_than_its_parent_is_left_alone(make: Callable[..., nn.Module]) -> None:
    model = nn.Sequential(make(3, 3), nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3))
    with pytest.warns(SparseVDWarning, match=r"left without a posterior: 0\.weight .*; 1\.parametrizations"):
        svd.sparsify_(model)
    assert [name for name, _ in named_posteriors(model)] == ["2"]


def same_padding() -> nn.Module:
    return pytest.importorskip("timm").layers.create_conv2d(3, 4, 3, stride=2, padding="same")


@pytest.mark.parametrize(
    "make", [lambda: OwnLinear(3, 3), lambda: PaddedConvolution(3, 4, 3, bias=False), same_padding]
)
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_a_layer_that_does_what_its_parent_does_is_converted(make: Callable[[], nn.Module], estimator: str) -> None:
    model = nn.Sequential(make())
    kind, keys = type(model[0]), list(model.state_dict())
    x = torch.randn(3, 3) if isinstance(model[0], nn.Linear) else torch.randn(2, 3, 9, 9)
    nn.init.uniform_(model[0].weight, 0.5, 1.0)  # none is so small that it counts as noise
    before = model(x)
    svd.sparsify_(model, estimator=estimator)
    assert [name for name, _ in named_posteriors(model)] == ["0"]
    assert not torch.equal(model.train()(x), model(x))  # noise
    model(x).sum().backward()
    assert model[0].log_sigma2.grad is not None and model[0].weight.grad is not None
    torch.testing.assert_close(model.eval()(x), before, rtol=0, atol=0)
    with torch.no_grad():
        model[0].log_sigma2.view(-1)[::2] = 30
    expected = copy.deepcopy(model)(x)
    svd.bake_(model)
    assert type(model[0]) is kind and list(model.state_dict()) == keys
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert (model[0].weight == 0).any()


def layer_with(parent: type[nn.Module], forward: Callable[[Any, Tensor], Tensor], *sizes: Any, **options: Any) -> Any:
    return type("Own", (parent,), {"forward": forward})(*sizes, **options)


REPEATING: dict[str, Callable[[], nn.Module]] = {
    "as it is, in one dimension": lambda: layer_with(nn.Conv1d, nn.Conv1d.forward, 3, 4, 3),
    "as it is, in three dimensions": lambda: layer_with(nn.Conv3d, nn.Conv3d.forward, 3, 4, 2, bias=False),
    "padding by name": lambda: layer_with(nn.Conv2d, nn.Conv2d.forward, 3, 4, 3, padding="same"),
    "padded twice": lambda: layer_with(
        nn.Conv2d, lambda m, x: F.conv2d(F.pad(F.pad(x, (1, 0)), (0, 0, 2, 1)), m.weight, m.bias), 3, 4, 3
    ),
    "another operator that pads": lambda: layer_with(
        nn.Conv2d, lambda m, x: F.conv2d(torch.constant_pad_nd(x, (1, 1, 1, 1)), m.weight, m.bias), 3, 4, 3
    ),
}
NOT_REPEATING: dict[str, Callable[[], nn.Module]] = {
    "leaves the bias out": lambda: layer_with(nn.Linear, lambda m, x: F.linear(x, m.weight), 3, 3),
    "without its weight": lambda: layer_with(nn.Linear, lambda m, x: F.linear(x, x), 3, 3, bias=False),
    "without its input": lambda: layer_with(nn.Linear, lambda m, x: F.linear(m.weight, m.weight, m.bias), 3, 3),
    "pads something else": lambda: layer_with(
        nn.Linear, lambda m, x: F.linear(F.pad(m.weight, (0, 0, 1, 0)), m.weight, m.bias), 3, 3
    ),
    "returns something else": lambda: layer_with(nn.Linear, lambda m, x: (F.linear(x, m.weight, m.bias), x)[1], 3, 3),
    "computes nothing": lambda: layer_with(nn.Linear, lambda m, x: x, 3, 3),
}


@pytest.mark.parametrize("case", [*REPEATING, *NOT_REPEATING])
def test_only_a_layer_that_repeats_its_parent_on_its_own_tensors_is_convertible(case: str) -> None:
    assert is_convertible((REPEATING | NOT_REPEATING)[case]()) == (case in REPEATING)


def test_a_converted_layer_of_ones_own_can_be_pickled() -> None:
    model = svd.sparsify_(nn.Sequential(PaddedConvolution(3, 4, 3))).eval()
    x = torch.randn(2, 3, 9, 9)
    loaded = pickle.loads(pickle.dumps(model))
    assert type(loaded[0]) is type(model[0])
    torch.testing.assert_close(loaded(x), model(x), rtol=0, atol=0)


# Baking with masks.


def test_masks_replace_the_networks_own() -> None:
    model = disturb_(svd.sparsify_(mixed()))
    mask = torch.ones_like(model.head.weight)
    mask[0, 1] = 0
    means = model.mix.weight.detach().clone()
    head = model.head.weight.detach().clone()
    svd.bake_(model, {"head": {"weight": mask}})
    assert torch.equal(model.mix.weight, means)  # not named: kept whole
    assert torch.equal(model.head.weight, torch.where(mask == 1, head, 0))


def test_baking_works_on_any_network() -> None:
    model = mixed()
    before = copy.deepcopy(model.state_dict())
    assert svd.bake_(model) is model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    mask = torch.tensor([1.0, 0.0])
    svd.bake_(model, {"head": {"bias": mask}})
    assert torch.equal(model.head.bias, before["head.bias"] * mask)


def test_a_refused_mask_leaves_the_network_variational() -> None:
    model = svd.sparsify_(mixed())
    with pytest.raises(MaskError, match="'hed'"):
        svd.bake_(model, {"hed": {"weight": torch.ones(1)}})
    assert is_variational(model)


def test_an_empty_layer_needs_a_word() -> None:
    model = svd.sparsify_(mixed())
    masks = {"head": {"weight": torch.zeros(2, 4)}}
    with pytest.raises(MaskError, match=r"head\.weight removes the whole layer"):
        svd.bake_(model, masks)
    svd.bake_(model, masks, allow_empty=True)
    assert (model.head.weight == 0).all()
