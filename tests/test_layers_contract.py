"""One contract for every layer x prior x dtype x bias x mode.  A new layer is one row of `ROWS`."""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd import nn as vnn
from nni_sparsevd.errors import ModelError, SettingError
from nni_sparsevd.posterior import divergence, elements
from nni_sparsevd.settings import PosteriorSettings

PRIORS = ("log_uniform", "log_uniform_exact", "ard")


@dataclass(frozen=True)
class Row:
    name: str
    make: Callable[[bool], nn.Module]
    shape: tuple[int, ...]
    indices: bool = False

    def input(self, dtype: torch.dtype) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        if self.indices:
            return torch.randint(0, 7, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)


ROWS = [
    Row("linear", lambda b: nn.Linear(6, 5, bias=b), (4, 6)),
    Row("linear 3d", lambda b: nn.Linear(6, 5, bias=b), (2, 3, 6)),
    Row("conv1d", lambda b: nn.Conv1d(4, 6, 3, padding=1, bias=b), (2, 4, 9)),
    Row("conv1d circular", lambda b: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular", bias=b), (2, 4, 9)),
    Row("conv2d", lambda b: nn.Conv2d(4, 6, 3, bias=b), (2, 4, 7, 6)),
    Row("conv2d grouped, strided", lambda b: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, bias=b), (2, 4, 7, 6)),
    Row("conv2d depthwise", lambda b: nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=b), (2, 4, 7, 6)),
    Row("conv2d dilated, same", lambda b: nn.Conv2d(4, 6, 3, padding="same", dilation=2, bias=b), (2, 4, 7, 6)),
    Row("conv2d reflect", lambda b: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect", bias=b), (2, 4, 7, 6)),
    Row("conv2d replicate", lambda b: nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate", bias=b), (2, 4, 7, 6)),
    Row("conv2d circular", lambda b: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular", bias=b), (2, 4, 7, 6)),
    Row("conv3d", lambda b: nn.Conv3d(2, 4, 2, stride=(1, 2, 1), groups=2, bias=b), (2, 2, 4, 5, 4)),
    Row("transposed 1d", lambda b: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1, bias=b), (2, 4, 5)),
    Row("transposed 2d", lambda b: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, bias=b), (2, 4, 5, 4)),
    Row("transposed from one channel", lambda b: nn.ConvTranspose2d(1, 4, 2, bias=b), (2, 1, 3, 3)),
    Row("transposed square", lambda b: nn.ConvTranspose2d(4, 4, 2, bias=b), (2, 4, 3, 3)),
    Row("transposed 3d", lambda b: nn.ConvTranspose3d(2, 4, 2, dilation=2, bias=b), (2, 2, 3, 3, 4)),
    Row("embedding", lambda b: nn.Embedding(7, 5, padding_idx=2 if b else None), (3, 4), indices=True),
]
rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
biases = pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
floats = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def plain(row: Row, bias: bool, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(row.make(bias)).to(dtype)


def variational(row: Row, bias: bool, dtype: torch.dtype = torch.float32, **settings: object) -> nn.Sequential:
    """A network of one layer whose log alpha lies on both sides of the threshold."""
    model = svd.sparsify_(plain(row, bias, dtype), **settings)
    with torch.no_grad():
        layer = model[0]
        size = layer.weight.square().clamp(min=1e-6).log()
        if layer.log_sigma2.shape == size.shape:
            layer.log_sigma2.copy_(2 * torch.randn_like(size) + size + 2)
        else:
            shared = [dim for dim in range(size.dim()) if dim != vnn.output_dim(layer)]
            layer.log_sigma2.copy_(size.mean(shared, keepdim=True) + 3)
    mask = layer.mask()
    assert mask.any() and not mask.all()  # otherwise the tests below would be vacuous
    return model


@rows
@biases
@floats
@pytest.mark.parametrize(("prior", "variance"), [*((prior, "weight") for prior in PRIORS), ("log_uniform", "channel")])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_shapes_and_gradients(
    row: Row, bias: bool, dtype: torch.dtype, prior: str, variance: str, training: bool
) -> None:
    model = variational(row, bias, dtype, prior=prior, variance=variance).train(training)
    x = row.input(dtype)
    if not row.indices:
        x.requires_grad_()
    y = model(x)
    reference = plain(row, bias, dtype)(x)
    assert y.shape == reference.shape and y.dtype == dtype
    (y.square().mean() + svd.kl(model) / 100).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.dtype == dtype and (parameter.grad != 0).any(), name
    assert row.indices or (x.grad.isfinite().all() and (x.grad != 0).any())


@rows
@biases
@floats
@pytest.mark.parametrize("variance", ["weight", "channel"])
def test_evaluation_is_the_baked_network_bit_for_bit(row: Row, bias: bool, dtype: torch.dtype, variance: str) -> None:
    model = variational(row, bias, dtype, variance=variance).eval()
    x = row.input(dtype)
    before, mask = model(x), model[0].mask()
    assert torch.equal(before, model(x))
    baked = svd.bake_(copy.deepcopy(model))
    assert torch.equal(before, baked(x))
    assert type(baked[0]) is type(row.make(bias))
    weight = baked[0].weight
    assert ((weight == 0) | mask).all() and not torch.signbit(weight[~mask]).any()
    assert not torch.equal(before, svd.bake_(model, masks={})(x))  # the mask did something


@rows
@biases
def test_identity(row: Row, bias: bool) -> None:
    """Nothing pruned: there and back gives the same object, class, keys, values and outputs, flags and hooks kept."""
    model = plain(row, bias).eval()
    layer = model[0]
    calls: list[int] = []
    layer.register_forward_hook(lambda *_: calls.append(1))
    layer.weight.requires_grad_(False)
    x, parameters, state = row.input(torch.float32), dict(model.named_parameters()), copy.deepcopy(model.state_dict())
    expected, attributes = model(x), set(vars(layer))
    svd.sparsify_(model)
    assert isinstance(model[0], vnn.Variational) and isinstance(model[0], type(row.make(bias))) and not model.training
    assert list(model.state_dict()) == [*state, "0.log_sigma2"]
    svd.bake_(model, masks={})
    assert model[0] is layer and type(layer) is type(row.make(bias)) and set(vars(layer)) == attributes
    assert all(dict(model.named_parameters())[name] is parameter for name, parameter in parameters.items())
    assert list(model.state_dict()) == list(state) and not layer.weight.requires_grad
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert torch.equal(model(x), expected) and len(calls) == 2


@rows
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("variance", ["weight", "channel"])
def test_kl_and_its_gradient(row: Row, prior: str, variance: str) -> None:
    model = variational(row, False, torch.float64, prior=prior, variance=variance)
    layer = model[0]
    layer.kl_weight = 2.5
    pair = (layer.weight, layer.log_sigma2)
    by_hand = 2.5 * elements.kl_elements(elements.log_alpha(*pair), prior).sum()
    torch.testing.assert_close(svd.kl(model), by_hand)
    found, free = torch.autograd.grad(svd.kl(model), pair), torch.autograd.grad(by_hand, pair)
    torch.testing.assert_close(found, free, rtol=1e-5, atol=1e-5)


@rows
@biases
@pytest.mark.parametrize("estimator", ["local", "local_bf16", "local_detached", "weight"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_bfloat16_autocast(row: Row, bias: bool, estimator: str, training: bool) -> None:
    model = variational(row, bias, estimator=estimator).train(training)
    x = row.input(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, reference = model(x), plain(row, bias)(x)
        loss = y.float().square().mean() + svd.kl(model) / 100
    assert y.dtype == reference.dtype and loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model(x), svd.bake_(copy.deepcopy(model))(x))


@rows
def test_loads_a_plain_state_dict_strictly(row: Row) -> None:
    model, donor = variational(row, True), plain(row, True)
    nn.init.normal_(donor[0].weight)
    state, spread = donor.state_dict(), model[0].log_sigma2.detach().clone()
    keys = list(state)
    model.load_state_dict(state, strict=True)
    assert torch.equal(model[0].weight, donor[0].weight) and torch.equal(model[0].log_sigma2, spread)
    assert list(state) == keys  # the caller's dictionary is untouched
    with pytest.raises(RuntimeError, match="weight"):
        model.load_state_dict({key: value for key, value in state.items() if "weight" not in key}, strict=True)


@rows
def test_state_dict_and_deepcopy_reproduce(row: Row) -> None:
    model = variational(row, True).eval()
    x, twin = row.input(torch.float32), copy.deepcopy(model)
    other = svd.sparsify_(plain(row, True)).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(twin(x), model(x)) and torch.equal(other(x), model(x))
    with torch.no_grad():
        twin[0].log_sigma2.fill_(50.0)
    assert torch.equal(other(x), model(x)) and not torch.equal(twin(x), model(x))


@rows
@pytest.mark.parametrize("estimator", ["local", "local_bf16", "local_detached", "weight"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_compiles_without_a_graph_break(row: Row, estimator: str, training: bool) -> None:
    torch._dynamo.reset()
    model = variational(row, True, estimator=estimator).train(training)
    x = row.input(torch.float32)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.manual_seed(3)
    expected = model(x)
    torch.manual_seed(3)
    assert torch.equal(compiled(x), expected)


def test_kl_compiles_without_a_graph_break() -> None:
    torch._dynamo.reset()
    for prior in PRIORS:
        model = variational(ROWS[0], True, prior=prior)
        expected = svd.kl(model)
        torch.testing.assert_close(
            torch.compile(lambda m=model: svd.kl(m), fullgraph=True, backend="eager")(), expected
        )


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@rows
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("variance", ["weight", "channel"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_regularize_adds_what_backward_would(row: Row, prior: str, variance: str, dtype: torch.dtype) -> None:
    model = variational(row, True, torch.float32, prior=prior, variance=variance).to(dtype)
    other = copy.deepcopy(model)
    torch.manual_seed(3)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        one.grad = torch.randn_like(one)
        two.grad = one.grad.clone()
    svd.regularize_(model, 0.3)
    (0.3 * svd.kl(other)).backward()
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(gradients(model), gradients(other), **tolerance)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_regularize_works_in_place_in_either_layout(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 1, 3), nn.Conv2d(1, 5, 3)]
    model = svd.sparsify_(nn.Sequential(*layers).to(memory_format=layout))
    expected = copy.deepcopy(model)
    (2.0 * svd.kl(expected)).backward()
    monkeypatch.setattr(divergence, "backpropagate_if_trainable", lambda _: pytest.fail("the slow way"))
    svd.regularize_(model, 2.0)
    torch.testing.assert_close(gradients(model), gradients(expected))


def test_regularize_leaves_frozen_layers_alone() -> None:
    layers = [nn.Linear(4, 3), nn.Linear(3, 2)]
    layers[0].weight.requires_grad_(False)
    model = svd.sparsify_(nn.Sequential(*layers))
    svd.regularize_(model, 1.0)
    assert all(value is None for name, value in gradients(model).items() if name.startswith("0."))
    assert gradients(model)["1.log_sigma2"].max() < 0


def test_regularize_beyond_what_is_worked_on_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for variance in ("weight", "channel"):
        model = svd.sparsify_(nn.Sequential(nn.Linear(7, 9)), variance=variance)
        whole = copy.deepcopy(model)
        svd.regularize_(whole, 1.0)
        monkeypatch.setattr(divergence, "CHUNK_SIZE", 16)
        svd.regularize_(model, 1.0)
        monkeypatch.undo()
        torch.testing.assert_close(gradients(model), gradients(whole))


def test_regularize_wants_posteriors() -> None:
    with pytest.raises(ModelError, match="sparsify_"):
        svd.regularize_(nn.Linear(2, 2), 1.0)


@pytest.mark.parametrize("shape", [(6, 5), (6, 1), (1, 5)])
def test_one_sample_has_the_gradient_of_its_formula(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    theta = torch.randn(6, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    log_sigma2 = torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True)
    pull = torch.randn(6, 5, generator=draw, dtype=torch.float64)
    torch.manual_seed(1)
    found = vnn.sample_weights(theta, log_sigma2)
    torch.manual_seed(1)
    formula = theta + torch.randn(6, 5, dtype=torch.float64) * (0.5 * log_sigma2).exp()
    torch.testing.assert_close(found, formula)
    gradients = [torch.autograd.grad((y * pull).sum(), (theta, log_sigma2)) for y in (found, formula)]
    torch.testing.assert_close(*gradients)
    (first,) = torch.autograd.grad(vnn.sample_weights(theta, log_sigma2).pow(2).sum(), log_sigma2, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):  # what a second derivative needs is not kept
        first.sum().backward()


@pytest.mark.parametrize("estimator", ["local", "local_bf16", "local_detached", "weight"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_channels_last_is_preserved(estimator: str, training: bool) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)).to(memory_format=torch.channels_last)
    svd.sparsify_(model, estimator=estimator).train(training)
    assert model[0].log_sigma2.is_contiguous(memory_format=torch.channels_last)
    y = model(torch.randn(2, 4, 7, 6).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
    y.sum().backward()
    baked = svd.bake_(model)
    assert baked[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_transposed_takes_an_output_size(kind: type[nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    layer = kind(3, 4, 3, stride=2, padding=1, dilation=2)
    x = torch.randn(2, 3, *[4] * (layer.weight.dim() - 2))
    size = [10] * (layer.weight.dim() - 2)  # the larger of the two that fit; without dilation it would be refused
    expected = layer(x, output_size=size)
    vnn.to_variational_(layer, PosteriorSettings(init_log_sigma2=-40.0))
    found = layer.train(training)(x, output_size=size)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)
    assert layer(x).shape != found.shape


@pytest.mark.parametrize("option", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_embedding_refuses_what_it_cannot_honour(option: dict[str, object]) -> None:
    layer = nn.Embedding(5, 3, **option)
    with pytest.raises(SettingError, match=next(iter(option))):
        vnn.to_variational_(layer, PosteriorSettings())
    assert type(layer) is nn.Embedding and layer(torch.tensor([1])).shape == (1, 3)


@pytest.mark.parametrize("estimator", ["local", "local_bf16", "local_detached", "weight"])
def test_padding_row_is_a_constant(estimator: str) -> None:
    """As in torch: it is looked up as it is and never moves, whatever stands in it."""
    model = nn.Sequential(nn.Embedding(5, 3, padding_idx=1))
    row = torch.tensor([0.5, -2.0, 0.001])
    model[0].weight.data[1] = row
    svd.sparsify_(model, estimator=estimator, init_log_sigma2=-2.0)
    indices = torch.tensor([[0, 1], [1, 4]])
    y = model(indices)
    assert torch.equal(y[0, 1], row) and torch.equal(y[1, 0], row) and not torch.equal(y[0, 0], model[0].weight[0])
    (y.sum() + svd.kl(model)).backward()
    assert (model[0].weight.grad[1] == 0).all() and (model[0].weight.grad[0] != 0).any()
    assert torch.equal(model.eval()(indices)[0, 1], row)  # the third entry's log alpha exceeds the threshold


class _Doubling(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_only_torchs_own_layers_are_convertible() -> None:
    attention = nn.MultiheadAttention(4, 2)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    assert vnn.is_convertible(nn.Linear(3, 3))
    for module in (_Doubling(3, 3), attention.out_proj, normed, nn.LazyLinear(3), nn.Bilinear(2, 2, 2)):
        assert not vnn.is_convertible(module), type(module)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, lambda m: nn.utils.prune.l1_unstructured(m, "weight", 0.5)])
def test_a_weight_recomputed_by_torchs_hooks_is_not_convertible(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """Its hook would overwrite the masked weight before every forward pass."""
    import torch.nn.utils.prune  # noqa: F401  torch loads it on demand

    assert not vnn.is_convertible(wrap(nn.Linear(3, 3)))


def test_kl_needs_a_posterior_and_counts_each_once() -> None:
    with pytest.raises(svd.SparseVDError, match="sparsify_"):
        svd.kl(nn.Linear(2, 2))
    layer = nn.Linear(4, 4)
    model = svd.sparsify_(nn.Sequential(layer, nn.ReLU(), layer))
    assert torch.equal(svd.kl(model), model[0].kl())
    assert [name for name, _ in vnn.named_posteriors(model)] == ["0"]


def test_layers_can_be_built_directly() -> None:
    for kind, twin in vnn.VARIATIONAL.items():
        layer = twin(4, 6) if kind in (nn.Linear, nn.Embedding) else twin(4, 6, 3)
        assert isinstance(layer, kind) and layer.log_sigma2.shape == layer.weight.shape
        assert type(vnn.to_plain_(layer)) is kind and "log_sigma2" not in layer.state_dict()
