"""The contract of `nni_sparsevd.testing` for every layer.  A new layer is one row of `ROWS`."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd import nn as vnn
from nni_sparsevd.errors import ModelError, SettingError
from nni_sparsevd.posterior import divergence
from nni_sparsevd.settings import PosteriorSettings
from nni_sparsevd.testing import VariationalLayerTestCase

PRIORS = ("log_uniform", "log_uniform_exact", "ard")


class Row(VariationalLayerTestCase):
    """One layer of torch: how it is made from its `bias`, and the shape of its input."""

    def __init__(
        self, name: str, make: Callable[[bool], nn.Module], shape: tuple[int, ...], indices: bool = False
    ) -> None:
        self.name, self.make, self.shape, self.indices = name, make, shape, indices

    def make_layer(self, bias: bool) -> nn.Module:
        return self.make(bias)

    def make_inputs(self) -> Tensor:
        return torch.randint(0, 7, self.shape) if self.indices else torch.randn(self.shape)


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
CONTRACT = [name for name in vars(VariationalLayerTestCase) if name.startswith("test_")]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("test", CONTRACT)
def test_contract(row: Row, test: str) -> None:
    getattr(row, test)()


def is_torchs(kind: type[nn.Module]) -> bool:
    """Not one that another test, or a page of the documentation, has registered."""
    return kind.__module__.startswith("torch.")


def test_the_contract_is_whole() -> None:
    assert len(CONTRACT) == 10
    assert {type(row.make_layer(True)) for row in ROWS} == {kind for kind in vnn.VARIATIONAL if is_torchs(kind)}
    assert Row.priors == PRIORS and Row.estimators == ("local", "local_bf16", "local_detached", "weight")
    assert Row.biases == (True, False) and Row.variances == ("weight", "channel")
    assert Row.dtypes == (torch.float32, torch.float64)


class ForgetsItsMask(vnn.Linear):
    """Wrong: evaluation mode uses weights that baking removes."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


class ScalesItsNoise(vnn.Linear):
    """Wrong: the operation sees x^2 and sigma^2 as well, so that the noise gets the factor's root."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute_output(lambda x, weight, bias: 4 * nn.functional.linear(x, weight, bias), x)


class CutsTheInputGradient(vnn.Linear):
    """Wrong: layers before it learn nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute_output(nn.functional.linear, x.detach())


@pytest.mark.parametrize(
    ("wrong", "test", "message"),
    [
        (ForgetsItsMask, "test_evaluation_is_the_baked_layer", "the baked layer computes something else"),
        (ScalesItsNoise, "test_noise_is_that_of_sampled_weights", "the mean is off"),
        (CutsTheInputGradient, "test_shapes_and_gradients", "input has no gradient"),
    ],
)
def test_the_contract_finds_what_is_wrong(
    wrong: type[vnn.Variational], test: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vnn.VARIATIONAL, nn.Linear, wrong)
    with pytest.raises(AssertionError, match=message) as caught:
        getattr(ROWS[0], test)()
    assert "variance=weight" in caught.value.__notes__[0]


def test_a_layer_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubling(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(2 * x)

    class VariationalDoubling(vnn.Variational, Doubling):
        def forward(self, x: Tensor) -> Tensor:
            return self.compute_output(nn.functional.linear, 2 * x)

    monkeypatch.delitem(vnn.VARIATIONAL, Doubling, raising=False)
    assert not vnn.is_convertible(Doubling(3, 3))
    with pytest.raises(ModelError, match="does not inherit from Doubling"):
        vnn.register_layer(Doubling, vnn.Linear)
    with pytest.raises(ModelError, match="has no ordinary twin"):
        vnn.to_plain_(VariationalDoubling(3, 3))
    vnn.register_layer(Doubling, VariationalDoubling)
    vnn.register_layer(Doubling, VariationalDoubling)  # again is no mistake
    try:
        with pytest.raises(ModelError, match="registered with Linear already"):
            vnn.register_layer(nn.Linear, VariationalDoubling)
        row = Row("doubling", lambda bias: Doubling(6, 5, bias=bias), (4, 6))
        for test in CONTRACT:
            getattr(row, test)()
    finally:
        del vnn.VARIATIONAL[Doubling]


def test_kl_compiles_without_a_graph_break() -> None:
    torch._dynamo.reset()
    for prior in PRIORS:
        model = ROWS[0].make_variational(True, prior=prior)
        expected = svd.kl(model)
        torch.testing.assert_close(
            torch.compile(lambda m=model: svd.kl(m), fullgraph=True, backend="eager")(), expected
        )


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_regularize_works_in_place_in_either_layout(
    layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 1, 3), nn.Conv2d(1, 5, 3)]
    model = svd.sparsify_(nn.Sequential(*layers).to(memory_format=layout))
    expected = copy.deepcopy(model)
    (2.0 * svd.kl(expected)).backward()
    monkeypatch.setattr(divergence, "backpropagate_kl", lambda *_: pytest.fail("the slow way"))
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
@pytest.mark.parametrize("channels", [1, 4])
def test_channels_last_is_preserved(estimator: str, training: bool, channels: int) -> None:
    model = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1)).to(memory_format=torch.channels_last)
    svd.sparsify_(model, estimator=estimator).train(training)
    assert model[0].log_sigma2.is_contiguous(memory_format=torch.channels_last)
    y = model(torch.randn(2, channels, 7, 6).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous()
    y.sum().backward()
    assert model[0].weight.grad is not None and model[0].weight.grad.norm() > 0
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
    for kind, twin in ((kind, twin) for kind, twin in vnn.VARIATIONAL.items() if is_torchs(kind)):
        layer = twin(4, 6) if kind in (nn.Linear, nn.Embedding) else twin(4, 6, 3)
        assert isinstance(layer, kind) and layer.log_sigma2.shape == layer.weight.shape
        assert type(vnn.to_plain_(layer)) is kind and "log_sigma2" not in layer.state_dict()
