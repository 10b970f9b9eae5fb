"""Networks in the state that a training loop leaves them in: kept features, hooks, weights that hooks compute."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

import nni_sparsevd as svd
from nni_sparsevd.errors import ModelError
from nni_sparsevd.testing import relative_difference

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        model[0].weight[::3] = 0
    return model


class Keeps(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = mlp()
        self.kept: dict[str, list[Tensor]] = {"features": []}

    def forward(self, x: Tensor) -> Tensor:
        self.kept["features"] = [self.layers[0](x)]
        return self.layers[1:](self.kept["features"][0])


@dataclass
class Record:
    outputs: list[Tensor] = field(default_factory=list)

    def append(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.outputs.append(output)


def hooked() -> nn.Module:
    model = mlp()
    model[0].register_forward_hook(Record().append)
    return model


def pruned() -> nn.Module:
    model = mlp()
    prune.ln_structured(model[0], "weight", 1 / 3, 2, 0)
    return model


def pruned_depthwise() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 3, 1)
    ).double()
    with torch.no_grad():
        model[1].weight[::3] = 0
        model[1].bias[::3] = 0
    for layer in model[1:]:
        prune.identity(layer, "weight")
        prune.identity(layer, "bias")
    with torch.no_grad():
        model[2].bias_orig[::3] = 0
    return model


def weight_normed() -> nn.Module:
    model = mlp()
    weight_norm(model[0])
    with torch.no_grad():
        model[0].weight_v.normal_()
        model[0].weight_g[::3] = 0
    return model


def parametrized() -> nn.Module:
    model = mlp()
    parametrizations.weight_norm(model[0])
    with torch.no_grad():
        model[0].parametrizations.weight.original1.normal_()
        model[0].parametrizations.weight.original0[::3] = 0
    return model


TRAINED = [Keeps, hooked, pruned, pruned_depthwise, weight_normed, parametrized]


@pytest.mark.parametrize("make", TRAINED)
def test_a_network_shrinks_after_a_step_of_training(make: Callable[[], nn.Module]) -> None:
    model = make()
    model(X).square().sum().backward()
    small, plan = svd.shrink(model.eval(), X)
    assert plan.removed == 4, str(plan)
    assert relative_difference(model, small, X) < 1e-12
    widths = [layer.out_features for layer in small.modules() if isinstance(layer, nn.Linear)]
    assert not widths or widths[0] == 8
    assert svd.make_plan(small, X).removed == 0  # a fixed point, also for weights that hooks compute


def test_the_kept_tensors_of_the_original_stay_as_they_are() -> None:
    model = Keeps()
    model(X).sum().backward()
    kept = model.kept["features"][0]
    before = kept.clone()
    small, _ = svd.shrink(model, X)
    assert model.kept["features"][0] is kept and kept.grad_fn is not None
    assert torch.equal(kept, before)
    assert all(value.grad_fn is None for value in small.kept["features"])


def test_what_learns_is_copied_with_a_history_too() -> None:
    model = svd.sparsify_(hooked())
    model(X).sum().backward()
    assert svd.compute_masks(model, structure="structured", example_inputs=X)
    assert torch.isfinite(svd.predict(model, X, samples=2).probabilities).all()
    assert svd.shrink(model, X)[1].groups


def test_what_cannot_be_copied_is_named() -> None:
    model = mlp()
    model[2].lock = threading.Lock()
    with pytest.raises(ModelError, match=r"Sequential cannot be copied, because of 2\.lock: .*remove that attribute"):
        svd.shrink(model, X)


class Averages(nn.Module):
    """Keeps a moving average of what it has seen, in a buffer or in an attribute."""

    def __init__(self, update: str) -> None:
        super().__init__()
        self.layers, self.update = mlp(), update
        self.register_buffer("average", torch.zeros(12).double())
        self.kept = torch.zeros(12).double()

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](x)
        average = self.kept if self.update == "attribute" else self.average
        if self.update == "in place":
            average.mul_(0.9).add_(y.mean(0), alpha=0.1)
        elif self.update == "new buffer":
            self.average = average = 0.9 * average + 0.1 * y.mean(0)
        else:
            self.kept = average = 0.9 * average.to(y) + 0.1 * y.mean(0)
        return self.layers[1:](y - average)


@pytest.mark.parametrize("update", ["in place", "new buffer"])
def test_what_a_network_writes_to_its_buffers_is_no_constant(update: str) -> None:
    model = Averages(update)
    small, plan = svd.shrink(model, X)
    assert plan.removed == 0  # channels whose weights are 0 move with the average
    for _ in range(3):
        torch.testing.assert_close(small(X), model(X))


def test_a_network_that_remembers_its_calls_elsewhere_is_refused() -> None:
    with pytest.raises(ModelError, match=r"again with the same input.*register_buffer"):
        svd.shrink(Averages("attribute"), X)


class Window(nn.Module):
    """Pools in windows that become smaller at the first small image, and stay so, as those of Hugging Face's Swin."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.size = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1), 24

    def forward(self, x: Tensor) -> Tensor:
        self.size = min(self.size, x.shape[-1] // 2)
        return self.last(F.avg_pool2d(self.first(x).relu(), self.size, 1))


def test_a_network_that_changes_a_setting_of_its_own_is_compared_from_the_same_setting() -> None:
    model = Window().double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        model.first.weight[::2] = 0
        model.first.bias[::2] = 0
    small, plan = svd.shrink(model, images)
    assert plan.removed == 3 and model.size == small.size == 24
    for side in (64, 16, 64):
        torch.testing.assert_close(small(images[..., :side, :side]), model(images[..., :side, :side]))


@pytest.mark.parametrize("where", ["forward", "hook"])
def test_a_function_that_holds_the_network_is_refused(where: str) -> None:
    model: Any = mlp()
    if where == "forward":  # the copy would run the original: nothing could be removed from it
        forward = model.forward
        model.forward = lambda x: 2 * forward(x)
    else:
        model[0].register_forward_hook(lambda module, inputs, output: output + model[0].bias)
    with pytest.raises(ModelError, match=r"computes with 0\.(weight|bias) of the network that was passed in"):
        svd.shrink(model, X)
