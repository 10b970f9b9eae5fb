"""Networks that cannot be worked on are refused by name, with what to do, before anything is changed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.ao import quantization

import nni_sparsevd as svd
from nni_sparsevd.errors import ModelError, TraceError

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


def test_other_graph_modules_go_through() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight[::3] = 0
    assert svd.shrink(torch.fx.symbolic_trace(model), X)[1].removed == 4


@pytest.mark.parametrize("call", [svd.shrink, svd.make_plan, svd.shrink_])
def test_a_network_without_parameters_is_refused(call: Callable[[nn.Module, Tensor], object]) -> None:
    with pytest.raises(ModelError, match=r"^Sequential has no parameters.*nn\.ModuleList"):
        call(nn.Sequential(nn.ReLU()), X)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_and_inputs_that_are_no_numbers_are_named_before_anything_changes(value: float) -> None:
    model = mlp()
    with torch.no_grad():
        model[2].weight[1, 3] = value
    for call in (svd.sparsify_, lambda network: svd.shrink(network, X)):
        with pytest.raises(ModelError, match=r"^2\.weight holds 1 (NaN|infinite) of 36 numbers"):
            call(model)
    assert [type(layer) for layer in model] == [nn.Linear, nn.ReLU, nn.Linear]
    broken = X.clone()
    broken[0, 0] = float("nan")
    for inputs in (broken, {"input": broken}):
        with pytest.raises(ModelError, match=r"example input (0|input) holds NaN"):
            svd.sparsify_(mlp(), granularity="gate", example_inputs=inputs)


def test_parameters_on_two_devices_are_named() -> None:
    with FakeTensorMode():
        model = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 3, device="cuda"))
    for call in (svd.shrink, svd.make_plan, svd.shrink_):
        with pytest.raises(ModelError, match=r"^0\.weight is on cpu and 1\.weight is on cuda:0: move the network"):
            call(model, X)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(4, 6), mlp()

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.table(words))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.tensor([[1, 4]]), r"^Words fails on the example, .*\(1, 2\) in table: index out of range"),
        (torch.zeros(1, 2), r"^Words could not be traced on .*\(1, 2\) in table: "),
        (
            {"word": torch.tensor([[1]])},
            r"unexpected keyword argument 'word'; a dict is passed by keyword.*\(\{\.\.\.\},\)",
        ),
    ],
)
def test_an_example_that_the_network_does_not_take_is_named_before_anything_changes(inputs: Any, message: str) -> None:
    model = Words()
    for call in (
        lambda: svd.sparsify_(model, granularity="both", example_inputs=inputs),
        lambda: svd.shrink(model, inputs),
        lambda: svd.make_plan(model, inputs),
    ):
        with pytest.raises(TraceError, match=message):
            call()
    assert type(model.table) is nn.Embedding and type(model.head[0]) is nn.Linear
    variational = svd.sparsify_(Words())
    before = [parameter.shape for parameter in variational.parameters()]
    with pytest.raises(TraceError, match=message):
        svd.shrink_(variational, inputs)
    assert [parameter.shape for parameter in variational.parameters()] == before


def test_a_tuple_is_suggested_where_a_list_was_meant_to_be_one() -> None:
    with pytest.raises(TraceError, match=r"; a list is one argument, and a tuple holds several"):
        svd.make_plan(nn.Bilinear(6, 6, 3), [X, X])


def test_a_sparse_input_is_named() -> None:
    with pytest.raises(ModelError, match=r"example input 0 is sparse, .* pass it dense"):
        svd.shrink(mlp(), X.to_sparse())
