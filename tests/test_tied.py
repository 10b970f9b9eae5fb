"""Layers that share one weight have one posterior: laws 1 and 2, masks, training, files and shrinking."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from shrinking import prepared
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd import nn as variational
from nni_sparsevd.errors import ModelError, SettingError, SparseVDWarning
from nni_sparsevd.files import load_tensors, save_tensors
from nni_sparsevd.masks import count_weights, mask_group_channels_
from nni_sparsevd.testing import assert_shrinks_exactly

IDS = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(0))
X = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))


class LanguageModel(nn.Module):
    """An embedding whose table is the weight of the last layer."""

    def __init__(self, padding: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 12, padding_idx=padding)
        self.hidden = nn.Linear(12, 12)
        self.head = nn.Linear(12, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.table(ids))))


class Recurrence(nn.Sequential):
    """Two linear layers with one weight and biases of their own."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
        self[2].weight = self[0].weight


class Pyramid(nn.Module):
    """One head for several levels, as copies that share weight and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(6, 6, 3, padding=1)
        self.heads = nn.ModuleList(nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))
        self.heads[1].weight, self.heads[1].bias = self.heads[0].weight, self.heads[0].bias
        self.out = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.out(
            torch.relu(self.heads[0](x)) + torch.relu(F.interpolate(self.heads[1](x[..., ::2, ::2]), x.shape[2:]))
        )


class AutoEncoder(nn.Module):
    """A convolution and a transposed convolution with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Conv2d(6, 9, 3)
        self.decode = nn.ConvTranspose2d(9, 6, 3)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.relu(self.encode(x)))


TIED: list[tuple[Callable[[], nn.Module], Tensor]] = [
    (LanguageModel, IDS),
    (lambda: LanguageModel(padding=3), IDS),
    (Recurrence, X),
    (Pyramid, IMAGES),
    (AutoEncoder, IMAGES),
]
NAMES = ["embedding and linear", "with a padding row", "linear and linear", "convolutions", "and transposed"]
each_tie = pytest.mark.parametrize(("make", "x"), TIED, ids=NAMES)


def shared(model: nn.Module) -> list[str]:
    """The state-dict keys of the parameters that have another name, too."""
    names = list(dict(model.named_parameters(remove_duplicate=False)))
    return [name for name in names if name not in dict(model.named_parameters())]


def learned(make: Callable[[], nn.Module], **settings: object) -> nn.Module:
    """A network whose posteriors remove about a third of the weights."""
    torch.manual_seed(0)
    model = svd.sparsify_(make(), **settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("log_sigma2"):
                weight = model.get_parameter(name.replace("log_sigma2", "weight"))
                parameter.copy_(torch.randn_like(parameter) * 3 + weight.square().log().mean())
    return model


@each_tie
def test_the_first_law(make: Callable[[], nn.Module], x: Tensor) -> None:
    torch.manual_seed(0)
    model = make().eval()
    before, keys, ties = model(x), list(model.state_dict()), shared(model)
    classes = [type(module) for module in model.modules()]
    svd.bake_(svd.sparsify_(model), {})
    assert torch.equal(model(x), before)
    assert list(model.state_dict()) == keys and shared(model) == ties
    assert [type(module) for module in model.modules()] == classes
    assert not any("fixed_row" in vars(module) for module in model.modules())


@each_tie
@pytest.mark.parametrize("variance", ["weight", "channel"])
@pytest.mark.parametrize("estimator", ["local", "weight"])
def test_the_second_law(make: Callable[[], nn.Module], x: Tensor, variance: str, estimator: str) -> None:
    model = learned(make, variance=variance, estimator=estimator)
    assert torch.isfinite(model(x)).all()
    evaluated = model.eval()(x)
    baked = svd.bake_(copy.deepcopy(model))
    assert torch.equal(evaluated, baked(x))
    kept, total = count_weights(model, svd.compute_masks(model))
    assert 0 < kept < total


@each_tie
def test_one_parameter_has_one_posterior_and_its_kl_counts_once(make: Callable[[], nn.Module], x: Tensor) -> None:
    model = learned(make)
    weights = [name for name, value in model.named_parameters() if value.dim() > 1 and not name.endswith("log_sigma2")]
    assert len(weights) == len([name for name, _ in model.named_parameters() if name.endswith("log_sigma2")])
    posteriors = [dict(model.named_modules())[name.rpartition(".")[0]] for name in weights]
    expected = torch.stack([layer.kl() for layer in posteriors]).sum()
    torch.testing.assert_close(svd.kl(model), expected)
    (svd.kl(model) / 7).backward()
    by_backward = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    svd.regularize_(model, 1 / 7)
    for name, gradient in by_backward.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient)


@each_tie
@pytest.mark.parametrize(
    ("structure", "ratio"),
    [("unstructured", None), ("unstructured", 0.5), ("structured", None), ("structured", 0.5), ("n:m", None)],
)
def test_masks_apply_to_all_names(
    make: Callable[[], nn.Module], x: Tensor, structure: str, ratio: float | None
) -> None:
    model = learned(make)
    masks = svd.compute_masks(model, structure=structure, ratio=ratio)
    for module, targets in masks.items():
        for key in targets:
            parameter = model.get_submodule(module).get_parameter(key)
            for other, holder in model.named_modules():
                if holder._parameters.get(key) is parameter:
                    assert torch.equal(masks[other][key], targets[key])
    baked = svd.bake_(copy.deepcopy(model), masks, allow_empty=True)
    for module, targets in masks.items():
        for key, mask in targets.items():
            assert (baked.get_submodule(module).get_parameter(key)[mask == 0] == 0).all()


@each_tie
def test_files_and_copies_keep_the_tie(make: Callable[[], nn.Module], x: Tensor, tmp_path: Path) -> None:
    model = learned(make).eval()
    ties = shared(model)
    assert any(name.endswith("log_sigma2") for name in ties)
    assert shared(copy.deepcopy(model)) == ties
    save_tensors(model.state_dict(), tmp_path / "checkpoint.safetensors", {})
    again = svd.sparsify_(make()).eval()
    again.load_state_dict(load_tensors(tmp_path / "checkpoint.safetensors")[0])
    assert shared(again) == ties and torch.equal(again(x), model(x))
    baked = svd.bake_(model)
    svd.save(baked, tmp_path / "network.safetensors")
    loaded = svd.load(tmp_path / "network.safetensors", model=make())
    assert shared(loaded) == shared(baked) and torch.equal(loaded(x), baked(x))


@each_tie
def test_a_tied_network_shrinks_exactly_while_it_learns(make: Callable[[], nn.Module], x: Tensor) -> None:
    model = learned(make)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, variational.Variational) and module.weight.shape[0] in (9, 12):
                module.log_sigma2[::3] = 40.0
    masked = svd.bake_(copy.deepcopy(model), svd.compute_masks(model, allow_empty=True), allow_empty=True).eval()
    svd.shrink_(model, x, optimizer)
    torch.testing.assert_close(model.eval()(x), masked(x), rtol=1e-4, atol=1e-5)
    model.train()(x).sum().backward()
    optimizer.step()


def test_networks_drawn_from_the_posterior_draw_a_tied_weight_once() -> None:
    torch.manual_seed(0)
    model = svd.sparsify_(LanguageModel(), init_log_sigma2=0.0)
    drawn = svd.sample_network(model)
    assert drawn.head.weight is drawn.table.weight
    assert 0.8 < float((drawn.table.weight - model.table.weight).std()) < 1.2  # two draws would have 1.4


def test_half_of_a_tie_is_refused_by_both_names() -> None:
    model = LanguageModel()
    keys = list(model.state_dict())
    with pytest.raises(SettingError, match=r"table\.weight and head\.weight are one parameter, but only table"):
        svd.sparsify_(model, exclude=["head"])
    assert list(model.state_dict()) == keys and type(model.table) is nn.Embedding
    svd.bake_(svd.sparsify_(LanguageModel(), exclude=["head", "table"]))


class TiedByCode(LanguageModel):
    """The code itself multiplies with the table, and computes queries, keys and values as BEiT does."""

    def __init__(self) -> None:
        super().__init__()
        del self.head
        self.qkv = nn.Linear(12, 12)

    def forward(self, ids: Tensor) -> Tensor:
        x = F.linear(self.table(ids), self.qkv.weight).to(self.hidden.weight)
        return F.linear(torch.tanh(self.hidden(x)), self.table.weight)


def test_weights_that_the_code_takes_from_their_layers_get_no_posterior() -> None:
    torch.manual_seed(0)
    model = TiedByCode()
    passed_over = svd.find_passed_over(model, example_inputs=IDS)
    assert passed_over == dict.fromkeys(
        ["table.weight", "qkv.weight"], "the code of TiedByCode uses it beside the layer"
    )
    with pytest.warns(SparseVDWarning, match=r"table\.weight \(the code of TiedByCode uses it"):
        svd.sparsify_(model, example_inputs=IDS)
    assert [name for name, _ in variational.named_posteriors(model)] == ["hidden"]
    with pytest.raises(ModelError, match=r"no layer to convert: table\.weight"):
        svd.sparsify_(TiedByCode(), example_inputs=IDS, include=["table"])


def test_masks_of_a_tied_convolution_reach_the_weight() -> None:
    model = prepared(AutoEncoder())
    graph = svd.channel_graph(model, IMAGES.double())
    masks: svd.Masks = {}
    group = graph.groups[0]
    mask_group_channels_(masks, model, graph, group, group.channels[1::3])
    assert sorted(masks["encode"]) == ["bias", "weight"]
    _, plan = assert_shrinks_exactly(svd.bake_(model, masks), IMAGES.double())
    assert plan.removed == 3


def test_a_tie_has_no_gate_of_one_side() -> None:
    torch.manual_seed(0)
    with pytest.warns(SparseVDWarning, match="shares its weight with"):
        model = svd.sparsify_(Pyramid(), granularity="both", example_inputs=IMAGES).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, variational.ChannelGate):
                module.mu.uniform_(0.5, 2)
    torch.testing.assert_close(svd.bake_(copy.deepcopy(model))(IMAGES), model(IMAGES))
