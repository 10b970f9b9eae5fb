"""The contract of a variational layer, as a test case to inherit: layer x prior x estimator x dtype x bias x mode."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..convert import bake_, sparsify_
from ..nn import Variational, kl, output_dim, regularize_
from ..posterior import Estimator, Prior, Variance, kl_elements, log_alpha
from .assertions import check_that

SAMPLES = 500
"""Outputs that are drawn to compare means and variances."""


class VariationalLayerTestCase(ABC):
    """Everything that a variational layer must do, as tests of one layer.

    A subclass gives the ordinary layer and an input for it. Name the subclass `Test...` for pytest, or inherit from
    `unittest.TestCase` as well.

    You must define `make_layer` and `make_inputs`. You may narrow `biases`, `priors`, `variances`, `estimators` and
    `dtypes`, where a layer has no such choice.

    Example:
        ```python
        import torch
        from torch import Tensor, nn
        from nni_sparsevd.testing import VariationalLayerTestCase

        class TestLinear(VariationalLayerTestCase):
            def make_layer(self, bias: bool) -> nn.Module:
                return nn.Linear(6, 5, bias=bias)

            def make_inputs(self) -> Tensor:
                return torch.randn(4, 6)

        TestLinear().test_evaluation_is_the_baked_layer()
        ```
    """

    biases: tuple[bool, ...] = (True, False)
    """Arguments that `make_layer` is called with."""
    priors: tuple[Prior, ...] = get_args(Prior)
    variances: tuple[Variance, ...] = get_args(Variance)
    estimators: tuple[Estimator, ...] = get_args(Estimator)
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float64)

    @abstractmethod
    def make_layer(self, bias: bool) -> nn.Module:
        """Make the ordinary layer, which `sparsify_` converts.

        Args:
            bias: Whether the layer has a bias, or any other choice between two of its forms.

        Returns:
            The layer, in float32.
        """

    @abstractmethod
    def make_inputs(self) -> Tensor:
        """Make an input of the layer.

        Returns:
            A batch of inputs, along the first dimension: random numbers in float32, or integers. Each test calls it
            after a fixed seed.
        """

    # What the tests are made of.

    def make_network(self, bias: bool, dtype: torch.dtype = torch.float32) -> nn.Sequential:
        """Make a network of the ordinary layer alone, always with the same weights."""
        torch.manual_seed(0)
        return nn.Sequential(self.make_layer(bias)).to(dtype)

    def make_variational(self, bias: bool, dtype: torch.dtype = torch.float32, **settings: object) -> Any:
        """Make a variational network of the layer alone, whose log alpha lies on both sides of the threshold."""
        model = sparsify_(self.make_network(bias, dtype), **settings)  # type: ignore[arg-type]
        layer: Any = model.get_submodule("0")
        with torch.no_grad():
            log_square = layer.weight.square().clamp(min=1e-6).log()
            if layer.log_sigma2.shape == log_square.shape:
                layer.log_sigma2.copy_(2 * torch.randn_like(log_square) + log_square + 2)
            else:
                inputs = [dim for dim in range(log_square.dim()) if dim != output_dim(layer)]
                layer.log_sigma2.copy_(log_square.mean(inputs, keepdim=True) + 3)
        mask = layer.mask()
        check_that(bool(mask.any()), "the layer keeps no weight: the contract would say nothing")
        check_that(not mask.all(), "the layer removes no weight: the contract would say nothing")
        return model

    def _inputs(self, dtype: torch.dtype) -> Tensor:
        torch.manual_seed(1)
        x = self.make_inputs()
        return x.to(dtype) if x.is_floating_point() else x

    # The contract.

    def test_shapes_and_gradients(self) -> None:
        """Outputs have the shape and type of the ordinary layer's; every gradient is finite and not all zero."""
        settings = list(product(self.priors, self.variances))
        layers = product(self.biases, self.dtypes)
        references = {(bias, dtype): self.make_network(bias, dtype)(self._inputs(dtype)) for bias, dtype in layers}
        for bias, dtype, (prior, variance), training in product(self.biases, self.dtypes, settings, (True, False)):
            with _named(bias=bias, dtype=dtype, prior=prior, variance=variance, training=training):
                model = self.make_variational(bias, dtype, prior=prior, variance=variance).train(training)
                self._assert_shapes_and_gradients(model, references[bias, dtype])

    def _assert_shapes_and_gradients(self, model: nn.Module, reference: Tensor) -> None:
        dtype = reference.dtype
        x = self._inputs(dtype)
        learns = x.is_floating_point()
        if learns:
            x.requires_grad_()
        y = model(x)
        check_that(y.shape == reference.shape, f"shape {tuple(y.shape)}, the ordinary layer's {tuple(reference.shape)}")
        check_that(y.dtype == dtype, f"output in {y.dtype}")
        (y.square().mean() + kl(model) / 100).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        if learns:
            gradients["input"] = x.grad
        for name, gradient in gradients.items():
            if gradient is None:
                raise AssertionError(f"{name} has no gradient")
            check_that(bool(gradient.isfinite().all()), f"the gradient of {name} is not finite")
            check_that(gradient.dtype == dtype, f"the gradient of {name} is in {gradient.dtype}")
            check_that(bool((gradient != 0).any()), f"the gradient of {name} is zero")

    def test_evaluation_is_the_baked_layer(self) -> None:
        """Law 2, bit for bit: what evaluation mode computes is what ships; removed weights become +0.0."""
        for bias, dtype, variance in product(self.biases, self.dtypes, self.variances):
            with _named(bias=bias, dtype=dtype, variance=variance):
                model = self.make_variational(bias, dtype, variance=variance).eval()
                x = self._inputs(dtype)
                before, mask = model(x), model[0].mask()
                check_that(torch.equal(before, model(x)), "evaluation mode is not deterministic")
                baked: Any = bake_(copy.deepcopy(model))
                check_that(torch.equal(before, baked(x)), "the baked layer computes something else")
                check_that(type(baked[0]) is type(self.make_layer(bias)), f"baked to {type(baked[0]).__name__}")
                weight = baked[0].weight
                check_that(bool(((weight == 0) | mask).all()), "a removed weight is not zero")
                check_that(not torch.signbit(weight[~mask]).any(), "a removed weight is -0.0")
                unmasked = bake_(model, masks={})
                check_that(not torch.equal(before, unmasked(x)), "the mask makes no difference")

    def test_identity(self) -> None:
        """Law 1: there and back gives the same object, class, keys, values and outputs; flags and hooks are kept."""
        for bias in self.biases:
            with _named(bias=bias):
                self._assert_identity(bias)

    def _assert_identity(self, bias: bool) -> None:
        model: Any = self.make_network(bias).eval()
        layer, kind = model[0], type(model[0])
        calls: list[int] = []
        layer.register_forward_hook(lambda *_: calls.append(1))
        layer.weight.requires_grad_(False)
        x = self._inputs(torch.float32)
        parameters, state = dict(model.named_parameters()), copy.deepcopy(model.state_dict())
        expected, attributes = model(x), set(vars(layer))

        sparsify_(model)
        check_that(isinstance(model[0], Variational), "sparsify_ did not convert the layer")
        check_that(isinstance(model[0], kind), f"the variational layer is no {kind.__name__}")
        check_that(not model.training, "sparsify_ changed the training mode")
        check_that(list(model.state_dict()) == [*state, "0.log_sigma2"], f"state-dict keys {list(model.state_dict())}")

        bake_(model, masks={})
        check_that(model[0] is layer, "the layer is another object")
        check_that(type(layer) is kind, f"the layer is now a {type(layer).__name__}")
        check_that(set(vars(layer)) == attributes, f"attributes differ: {set(vars(layer)) ^ attributes}")
        after = dict(model.named_parameters())
        for name, parameter in parameters.items():
            check_that(after[name] is parameter, f"{name} is another object")
        check_that(list(model.state_dict()) == list(state), f"state-dict keys {list(model.state_dict())}")
        check_that(not layer.weight.requires_grad, "the weight learns again")
        for key, value in state.items():
            check_that(torch.equal(model.state_dict()[key], value), f"{key} changed")
        check_that(torch.equal(model(x), expected), "the outputs changed")
        check_that(len(calls) == 2, f"the forward hook ran {len(calls)} times instead of 2")

    def test_noise_is_that_of_sampled_weights(self) -> None:
        """In training, mean and variance of the output are those of the ordinary layer under sampled weights."""
        for variance in self.variances:
            truth = self._sample_ordinary_outputs(variance)
            for estimator in self.estimators:
                with _named(estimator=estimator, variance=variance):
                    model = self.make_variational(self.biases[0], estimator=estimator, variance=variance).train()
                    with torch.no_grad():
                        sampled = self._sample_outputs(model, estimator)
                    slack = 0.02 if estimator == "local_bf16" else 0.0
                    _assert_same_moments(sampled, truth, slack)

    def _sample_outputs(self, model: nn.Module, estimator: Estimator) -> Tensor:
        x = self._inputs(torch.float32)
        check_that(not torch.equal(model(x), model(x)), "two calls draw the same noise")
        if estimator == "weight":  # one sample of the weights serves a whole batch
            return torch.stack([model(x) for _ in range(SAMPLES)])
        repeated: Tensor = model(torch.cat([x] * SAMPLES))  # local noise is independent from row to row
        return repeated.reshape(SAMPLES, len(x), *repeated.shape[1:])

    @torch.no_grad()
    def _sample_ordinary_outputs(self, variance: Variance) -> Tensor:
        """Outputs of the ordinary layer, with weights drawn one by one from the posterior of the variational layer."""
        x, ordinary = self._inputs(torch.float32), self.make_network(self.biases[0])
        layer = self.make_variational(self.biases[0], variance=variance)[0]
        weight = ordinary.get_submodule("0").get_parameter("weight")
        deviations = (0.5 * layer.log_sigma2).exp().expand_as(weight).clone()
        # A weight whose log alpha is the lowest number there is can never be removed: it is a constant, as the padding
        # row of an embedding is.
        deviations[layer.log_alpha() == torch.finfo(weight.dtype).min] = 0
        outputs = []
        for _ in range(SAMPLES):
            weight.copy_(layer.weight + deviations * torch.randn_like(weight))
            outputs.append(ordinary(x))
        return torch.stack(outputs)

    def test_kl_and_its_gradient(self) -> None:
        """The KL is `kl_weight` times the sum over the weights, and its closed-form gradient is autograd's."""
        for prior, variance in product(self.priors, self.variances):
            with _named(prior=prior, variance=variance):
                model = self.make_variational(False, torch.float64, prior=prior, variance=variance)
                layer = model[0]
                layer.kl_weight = 2.5
                pair = (layer.weight, layer.log_sigma2)
                by_hand = 2.5 * kl_elements(log_alpha(*pair), prior).sum()
                torch.testing.assert_close(kl(model), by_hand)
                closed, free = torch.autograd.grad(kl(model), pair), torch.autograd.grad(by_hand, pair)
                torch.testing.assert_close(closed, free, rtol=1e-5, atol=1e-5)

    def test_regularize_adds_what_backward_would(self) -> None:
        """`regularize_` adds to `.grad` what the KL in the loss would."""
        for prior, variance, dtype in product(self.priors, self.variances, (*self.dtypes, torch.bfloat16)):
            with _named(prior=prior, variance=variance, dtype=dtype):
                model = self.make_variational(True, torch.float32, prior=prior, variance=variance).to(dtype)
                other = copy.deepcopy(model)
                torch.manual_seed(3)
                for left, right in zip(model.parameters(), other.parameters(), strict=True):
                    left.grad = torch.randn_like(left)
                    right.grad = left.grad.clone()
                regularize_(model, 0.3)
                (0.3 * kl(other)).backward()
                tolerance = 1e-2 if dtype == torch.bfloat16 else None  # None: what torch takes for the type
                for left, right in zip(model.parameters(), other.parameters(), strict=True):
                    torch.testing.assert_close(left.grad, right.grad, rtol=tolerance, atol=tolerance)

    def test_bfloat16_autocast(self) -> None:
        """Under autocast the output has the ordinary layer's type, the KL stays in float32, gradients are finite."""
        for bias, estimator, training in product(self.biases, self.estimators, (True, False)):
            with _named(bias=bias, estimator=estimator, training=training):
                model = self.make_variational(bias, estimator=estimator).train(training)
                x = self._inputs(torch.float32)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    y, reference = model(x), self.make_network(bias)(x)
                    loss = y.float().square().mean() + kl(model) / 100
                check_that(
                    y.dtype == reference.dtype, f"output in {y.dtype}, the ordinary layer's in {reference.dtype}"
                )
                check_that(loss.dtype == torch.float32, f"loss in {loss.dtype}")
                loss.backward()
                for name, parameter in model.named_parameters():
                    check_that(parameter.grad.dtype == torch.float32, f"the gradient of {name} is in half precision")
                    check_that(bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite")
                model.eval()
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    baked = bake_(copy.deepcopy(model))
                    check_that(torch.equal(model(x), baked(x)), "the baked layer computes something else")

    def test_loads_a_plain_state_dict_strictly(self) -> None:
        """An ordinary layer's state dict loads, and leaves `log_sigma2` as it is; one without a weight does not."""
        model, donor = self.make_variational(True), self.make_network(True)
        weight = donor.get_submodule("0").get_parameter("weight")
        nn.init.normal_(weight)
        state, log_sigma2 = donor.state_dict(), model[0].log_sigma2.detach().clone()
        keys = list(state)
        model.load_state_dict(state, strict=True)
        check_that(torch.equal(model[0].weight, weight), "the weight was not loaded")
        check_that(torch.equal(model[0].log_sigma2, log_sigma2), "log_sigma2 changed")
        check_that(list(state) == keys, "the caller's dictionary was changed")
        without_weight = {key: value for key, value in state.items() if "weight" not in key}
        try:
            model.load_state_dict(without_weight, strict=True)
        except RuntimeError as error:
            check_that("weight" in str(error), f"the error does not name the weight: {error}")
        else:
            raise AssertionError("a state dict without the weight was loaded strictly")

    def test_state_dict_and_deepcopy_reproduce(self) -> None:
        """A copy, and a layer that loads the state dict, compute the same, and share nothing."""
        model = self.make_variational(True).eval()
        x, twin = self._inputs(torch.float32), copy.deepcopy(model)
        other = sparsify_(self.make_network(True)).eval()
        other.load_state_dict(model.state_dict(), strict=True)
        check_that(torch.equal(twin(x), model(x)), "a deep copy computes something else")
        check_that(torch.equal(other(x), model(x)), "a layer with the same state dict computes something else")
        with torch.no_grad():
            twin[0].log_sigma2.fill_(50.0)
        check_that(torch.equal(other(x), model(x)), "a change of the copy changed another layer")
        check_that(not torch.equal(twin(x), model(x)), "log_sigma2 has no part in evaluation mode")

    def test_compiles_without_a_graph_break(self) -> None:
        """`torch.compile(fullgraph=True)` takes the layer, and draws the same noise."""
        torch._dynamo.reset()
        choices = list(product(self.estimators, (True, False)))
        models = [self.make_variational(True, estimator=estimator).train(training) for estimator, training in choices]
        x = self._inputs(torch.float32)

        def call_all() -> list[Tensor]:  # compiled at once, in half of the time that each would take by itself
            return [model(x) for model in models]

        torch.manual_seed(3)
        expected = call_all()
        torch.manual_seed(3)
        compiled = torch.compile(call_all, fullgraph=True, backend="eager")()
        for (estimator, training), left, right in zip(choices, compiled, expected, strict=True):
            with _named(estimator=estimator, training=training):
                check_that(torch.equal(left, right), "the compiled layer computes something else")


def _assert_same_moments(sampled: Tensor, truth: Tensor, slack: float) -> None:
    """Both are samples of Gaussian outputs: mean and variance must agree within six standard errors.

    The standard error of a difference of two means is sd sqrt(2/n), that of two logarithms of a variance sqrt(4/n).
    """
    deviation = truth.std(0)
    # Where no weight reaches, as at the border of a transposed convolution, the local estimators still leave noise of
    # 1e-4: the root of the 1e-8 that keeps their gradient finite.
    noisy = deviation > 1e-3
    check_that(bool(noisy.any()), "the output of the ordinary layer does not depend on its weights")
    check_that(bool((sampled.std(0)[~noisy] < 1e-3).all()), "there is noise where the ordinary layer has none")
    mean_error = ((sampled.mean(0) - truth.mean(0)).abs() / deviation)[noisy].max()
    bound = 6 * (2 / SAMPLES) ** 0.5 + slack
    check_that(bool(mean_error < bound), f"the mean is off by {mean_error:.2f} standard deviations")
    ratio = (sampled.var(0) / truth.var(0))[noisy]
    bound = 6 * (4 / SAMPLES) ** 0.5 + slack
    check_that(
        bool((ratio.log().abs() < bound).all()), f"the variance is off by factors {ratio.min():.2f}-{ratio.max():.2f}"
    )


@contextmanager
def _named(**choices: object) -> Iterator[None]:
    """Say for which choices a test failed."""
    try:
        yield
    except Exception as error:
        error.add_note("with " + ", ".join(f"{key}={value}" for key, value in choices.items()))
        raise
