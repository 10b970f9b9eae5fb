"""Networks that cannot be worked on are refused by name, with what to do, before anything is changed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization

import nni_sparsevd as svd
from nni_sparsevd.errors import ModelError

X = torch.randn(2, 6)
Make = Callable[[], nn.Module]


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3))


def scripted() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), torch.jit.script(nn.Sequential(nn.Linear(12, 12), nn.ReLU())))


def all_scripted() -> nn.Module:
    return torch.jit.trace(mlp(), X)


def exported() -> nn.Module:
    return torch.export.export(mlp(), (X,)).module()


def with_an_exported_part() -> nn.Module:
    return nn.Sequential(nn.Identity(), exported())


def on_meta() -> nn.Module:
    return mlp().to("meta")


def partly_on_meta() -> nn.Module:
    model = mlp()
    model[2].to("meta")
    return model


def quantized() -> nn.Module:
    return quantization.quantize_dynamic(mlp(), {nn.Linear})


def prepared() -> nn.Module:
    model = nn.Sequential(quantization.QuantStub(), *mlp()).train()
    model.qconfig = quantization.get_default_qat_qconfig("x86")
    quantization.prepare_qat(model, inplace=True)
    model(X)
    return model


def observed() -> nn.Module:
    model = nn.Sequential(quantization.QuantStub(), *mlp()).eval()
    model.qconfig = quantization.get_default_qconfig("x86")
    return quantization.prepare(model)


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(12), nn.ReLU(), nn.Linear(12, 3))


UNTRACEABLE: list[tuple[Make, str]] = [
    (scripted, r"^1 is a ScriptModule.*compile the smaller network afterwards"),
    (all_scripted, r"is a ScriptModule"),
    (on_meta, r"^0\.weight is on the meta device.*to_empty"),
    (partly_on_meta, r"^2\.weight is on the meta device"),
]
UNCONVERTIBLE: list[tuple[Make, str]] = [
    (exported, r"itself \(GraphModule.*torch\.export.*export the smaller one"),
    (with_an_exported_part, r"^1 \(GraphModule.*torch\.export"),
    (quantized, r"^0 \(Linear\) is quantized.*quantize the smaller one"),
    (prepared, r"prepared for quantization.*prepare_qat on the smaller one"),
    (observed, r"prepared for quantization"),
    (lazy, r"^0 \(LazyLinear\) is lazy.*run the network once"),
]


@pytest.mark.parametrize(("make", "message"), UNTRACEABLE + UNCONVERTIBLE)
@pytest.mark.parametrize("call", [svd.shrink, svd.make_plan, svd.channel_graph, svd.shrink_])
def test_it_is_not_shrunk(make: Make, message: str, call: Callable[[nn.Module, Tensor], object]) -> None:
    with pytest.raises(ModelError, match=message):
        call(make(), X)


@pytest.mark.parametrize(("make", "message"), UNCONVERTIBLE)
def test_it_gets_no_posterior(make: Make, message: str) -> None:
    model = make()
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ModelError, match=message):
        svd.sparsify_(model)
    assert [type(module) for module in model.modules()] == classes


def test_a_network_on_meta_may_get_posteriors() -> None:
    assert svd.sparsify_(on_meta())[0].log_sigma2.is_meta


def test_nan_in_a_weight_is_named() -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[1, 3] = float("nan")
    with pytest.raises(ModelError, match=r"^2\.weight holds 1 NaN of 36 numbers"):
        svd.shrink(model, X)


def test_an_empty_batch_is_named() -> None:
    with pytest.raises(ModelError, match=r"example input 0 has the shape \(0, 6\), which is empty"):
        svd.shrink(mlp(), X[:0])


def test_other_graph_modules_and_networks_without_parameters_go_through() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[::3] = 0
    assert svd.shrink(torch.fx.symbolic_trace(model), X)[1].removed == 4
    assert svd.shrink(nn.Sequential(nn.ReLU()), X)[1].removed == 0
