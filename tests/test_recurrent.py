"""Hidden units of recurrent layers leave where they are dead or unread; shrunk equals masked at every length."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.shrinking import apply_plan_

UNITS = (1, 4, 7)
"""Hidden units that leave, of nine."""
LAYERS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "LSTM": (nn.LSTM, {}),
    "GRU": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu, time first": (nn.RNN, {"nonlinearity": "relu", "batch_first": False}),
    "LSTM without biases": (nn.LSTM, {"bias": False}),
    "LSTM both ways": (nn.LSTM, {"bidirectional": True}),
    "GRU both ways": (nn.GRU, {"bidirectional": True}),
    "two layers of LSTM": (nn.LSTM, {"num_layers": 2}),
    "two layers of GRU": (nn.GRU, {"num_layers": 2}),
}


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones, of which the first has dead outputs."""

    def __init__(self, kind: type[nn.RNNBase], last_state: bool = False, **settings: Any) -> None:
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.cells: nn.RNNBase = kind(12, 9, **{"batch_first": True, **settings})
        self.last = nn.Linear((self.cells.proj_size or 9) * (1 + self.cells.bidirectional), 3)
        self.last_state = last_state
        with torch.no_grad():
            for parameter in self.parameters():
                nn.init.normal_(parameter, 0, 0.5)
            self.first.weight[::4], self.first.bias[::4] = 0, -1

    def forward(self, x: Tensor) -> Tensor:
        y, state = self.cells(self.first(x).relu())
        if self.last_state:
            y = (state[0] if isinstance(state, tuple) else state)[-1]
        return self.last(y)


@torch.no_grad()
def kill_units_(cells: nn.RNNBase) -> None:
    """Nothing writes these units: what a gate lets in is 0, so what they remember is 0 from the first step on."""
    gate = {"LSTM": 2, "GRU": 2}.get(cells.mode, 0)
    for name, parameter in cells.named_parameters():
        if "_hr_" not in name:
            parameter[[gate * cells.hidden_size + unit for unit in UNITS]] = 0


@torch.no_grad()
def ignore_units_(model: Recurrent) -> None:
    """Nobody reads these units, but themselves perhaps."""
    for name, parameter in model.cells.named_parameters():
        if "weight_hh" in name or "weight_ih_l1" in name:
            parameter[:, UNITS] = 0
    model.last.weight.unflatten(1, (-1, 9))[:, :, UNITS] = 0


def assert_exact(model: Recurrent, units: int, inputs: int = 3) -> Recurrent:
    """Shrink a network, and compare it with itself before at several lengths."""
    model = model.double().eval()
    plan = svd.make_plan(model, torch.randn(2, 4, 5, dtype=torch.float64))
    removed = {group.name: group.removed for group in plan.groups}
    assert (removed["first"], removed["cells"]) == (inputs, units), plan
    small = apply_plan_(copy.deepcopy(model), plan)
    for shape in ((2, 4, 5), (1, 1, 5), (3, 9, 5)):
        x = torch.randn(shape, dtype=torch.float64)
        torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-12)
    assert small.cells.hidden_size == 9 - units and small.cells.input_size == 12 - inputs
    return small


@pytest.mark.parametrize("name", LAYERS)
def test_dead_units_leave(name: str) -> None:
    torch.manual_seed(0)
    kind, settings = LAYERS[name]
    model = Recurrent(kind, last_state="both" not in name, **settings)
    kill_units_(model.cells)
    assert_exact(model, 3)


@pytest.mark.parametrize("name", LAYERS)
def test_unread_units_leave(name: str) -> None:
    torch.manual_seed(0)
    kind, settings = LAYERS[name]
    model = Recurrent(kind, **settings)
    ignore_units_(model)
    assert_exact(model, 3)


def test_units_before_a_projection_leave() -> None:
    torch.manual_seed(0)
    model = Recurrent(nn.LSTM, proj_size=4)
    kill_units_(model.cells)
    assert_exact(model, 3)


def test_a_unit_that_begins_at_zero_and_goes_on_as_a_constant_stays() -> None:
    torch.manual_seed(0)
    model = Recurrent(nn.RNN)
    with torch.no_grad():
        for weight in (model.cells.weight_ih_l0, model.cells.weight_hh_l0):
            weight[list(UNITS)] = 0  # type: ignore[index, operator]
    assert_exact(model, 0)  # tanh of its biases, but 0 before the first step


def test_a_unit_that_is_dead_in_one_layer_alone_stays() -> None:
    torch.manual_seed(0)
    model = Recurrent(nn.LSTM, num_layers=2)
    kill_units_(model.cells)
    nn.init.normal_(model.cells.weight_hh_l1)  # type: ignore[arg-type]
    assert_exact(model, 0)


class Cells(nn.Module):
    """A recurrent cell in a loop of the network's own, with its own state of zeros."""

    def __init__(self, kind: type[nn.RNNCellBase]) -> None:
        super().__init__()
        self.cell: Any = kind(5, 9)
        self.last = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), self.cell.hidden_size)
        state = (state, state) if isinstance(self.cell, nn.LSTMCell) else state
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.last(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_units_of_a_cell_leave_or_the_reason_is_named(kind: type[nn.RNNCellBase]) -> None:
    torch.manual_seed(0)
    model = Cells(kind).double().eval()
    with torch.no_grad():
        model.last.weight[:, UNITS] = model.cell.weight_hh[:, UNITS] = 0
    small, plan = svd.shrink(model, torch.randn(2, 4, 5, dtype=torch.float64))
    if kind is nn.RNNCell:
        assert plan.removed == 3 and small.cell.hidden_size == 6
    else:  # PyTorch computes the gates in place, in the memory of all four
        assert plan.removed == 0 and plan.groups[0].reason == "a part of its memory was written to in place"
    x = torch.randn(3, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-12)


def test_a_smaller_recurrent_layer_is_saved_and_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Recurrent(nn.LSTM, bidirectional=True)
    kill_units_(model.cells)
    small = assert_exact(model, 3)
    svd.save(small, tmp_path / "small")
    loaded = svd.load(tmp_path / "small", Recurrent(nn.LSTM, bidirectional=True).double())
    x = torch.randn(3, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(loaded(x), small(x), rtol=0, atol=0)
