"""What is removed is exact at every input size, not at that of the example alone."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from drawn_sizes import STEPS, draw_image, draw_network, worst_difference
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shrinking import Net
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.graph import trace_other_sizes
from nni_sparsevd.graph.tracing import trace


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    places=st.sampled_from([1, 2]),
    steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_networks_drawn_at_random(places: int, steps: list[str], seed: int) -> None:
    model = draw_network(places, tuple(steps), seed)
    small, _ = svd.shrink(model, draw_image(places, 8, 2))
    assert worst_difference(model, small, places) < 1e-9


@pytest.mark.parametrize("name", STEPS)
def test_each_step_alone(name: str) -> None:
    model = draw_network(1, (name,), 3)
    small, _ = svd.shrink(model, draw_image(1, 8, 2))
    assert worst_difference(model, small, 1) < 1e-9


def tokens_by_einsum(model: nn.Module, x: Tensor) -> Tensor:
    weights = torch.ones(x.shape[1], dtype=x.dtype)
    return model.head(torch.einsum("btc,t->bc", model.body(x).sigmoid(), weights))


def tokens_by_attention_of_ones(model: nn.Module, x: Tensor) -> Tensor:
    y = model.body(x).sigmoid()
    return model.head((torch.ones_like(y[..., :1]) @ torch.ones_like(y[..., :1]).mT @ y).mean(1))


def causal_average(model: nn.Module, x: Tensor) -> Tensor:
    y = model.body(x).sigmoid()
    return model.head(y.cumsum(1) / torch.arange(1, y.shape[1] + 1).view(-1, 1))


def scaled_by_tokens(model: nn.Module, x: Tensor) -> Tensor:
    return model.head(model.body(x).sigmoid() * x.size(1) ** -0.5)


def chosen_by_length(model: nn.Module, x: Tensor) -> Tensor:
    y = model.body(x).sigmoid()
    return model.head(2 * y if x.shape[1] > 9 else y)


def sum_of_graph(model: nn.Module, x: Tensor) -> Tensor:
    y = model.body(x).sigmoid()
    return model.head(torch.cat([y, y.sum(1, keepdim=True)], 1))


TOKENS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    function.__name__: function
    for function in (
        tokens_by_einsum,
        tokens_by_attention_of_ones,
        causal_average,
        scaled_by_tokens,
        chosen_by_length,
        sum_of_graph,
    )
}


@pytest.mark.parametrize("name", TOKENS)
def test_networks_on_tokens(name: str) -> None:
    torch.manual_seed(0)
    model = Net(TOKENS[name], body=nn.Linear(5, 9), head=nn.Linear(9, 3)).double().eval()
    with torch.no_grad():
        model.body.weight[::3] = 0
    small, _ = svd.shrink(model, torch.randn(2, 7, 5).double())
    for batch, tokens in ((2, 7), (1, 4), (3, 21)):
        x = torch.randn(batch, tokens, 5).double()
        torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-12)


def bag(gather: Callable[[Tensor], Tensor], zero: bool = False) -> nn.Module:
    """Three of nine channels are sigmoid(bias) at every place, or 0."""
    activate = F.relu if zero else torch.sigmoid
    model = Net(lambda m, x: m.o(gather(activate(m.a(x)))), a=nn.Conv1d(3, 9, 3), o=nn.Linear(9, 4)).double().eval()
    with torch.no_grad():
        model.a.weight[::3] = 0
        model.a.bias[::3] = -1.0
    return model


def test_a_sum_over_time_keeps_constants_and_says_why() -> None:
    plan = svd.make_plan(bag(lambda x: x.sum(-1)), torch.randn(2, 3, 20).double())
    assert plan.removed == 0
    assert plan.groups[0].reason == "3 constant, but what sum makes of that depends on the size of the input"


def test_a_softmax_over_time_keeps_constants_and_says_why() -> None:
    plan = svd.make_plan(bag(lambda x: x.softmax(-1).amax(-1)), torch.randn(2, 3, 20).double())
    assert plan.removed == 0
    assert plan.groups[0].reason == "3 constant, but what softmax makes of that depends on the size of the input"


@pytest.mark.parametrize("gather", [lambda x: x.sum(-1), lambda x: x.mean(-1), lambda x: x.cumsum(-1)[..., -1]])
def test_zeros_pass_a_sum(gather: Callable[[Tensor], Tensor]) -> None:
    model = bag(gather, zero=True)
    small, plan = svd.shrink(model, torch.randn(2, 3, 20).double())
    assert plan.removed == 3 or "cumsum has no rule" in plan.groups[0].reason
    x = torch.randn(1, 3, 33).double()
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


class WindowAttention(nn.Module):
    """Attention within windows of four tokens, with an axis of (windows * heads,), as SAM has it.

    A table of positions, where there is one, is interpolated at other sizes, which takes one reshape more.
    """

    def __init__(self, adds_positions: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.window = 4, 2, 4
        self.qkv, self.proj = nn.Linear(5, 24), nn.Linear(8, 3)
        self.table = nn.Parameter(torch.randn(12, 5)) if adds_positions else None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is not None:
            table = self.table
            if x.shape[1] != len(table):
                table = F.interpolate(table.mT[None], x.shape[1]).reshape(-1, x.shape[1]).mT
            x = x + table
        windows = x.shape[0] * x.shape[1] // self.window
        parts = self.qkv(x).reshape(windows, self.window, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.reshape(3, windows * self.num_heads, self.window, -1).unbind(0)
        mixed = (queries * self.head_dim**-0.5 @ keys.mT).softmax(-1) @ values
        mixed = mixed.reshape(windows, self.num_heads, self.window, -1).transpose(1, 2)
        return self.proj(mixed.reshape(*x.shape[:2], -1))


@pytest.mark.parametrize("bias", [0.0, 0.7])
@pytest.mark.parametrize("adds_positions", [False, True])
def test_a_head_leaves_an_axis_that_grows_with_the_input(bias: float, adds_positions: bool) -> None:
    torch.manual_seed(0)
    model = WindowAttention(adds_positions).double().eval()
    with torch.no_grad():
        for part in range(3):
            model.qkv.weight[8 * part + 2 : 8 * part + 4] = 0
            model.qkv.bias[8 * part + 2 : 8 * part + 4] = bias if part == 2 else 0
    small, plan = svd.shrink(model, torch.randn(2, 12, 5).double())
    assert plan.removed == 1 and small.qkv.out_features == 18
    for batch, tokens in ((1, 4), (3, 20)):
        x = torch.randn(batch, tokens, 5).double()
        torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("gather", [lambda x: x.mean(-1), lambda x: x.amax(-1), lambda x: x[..., 0]])
def test_what_does_not_depend_on_the_size_is_still_removed(gather: Callable[[Tensor], Tensor]) -> None:
    model = bag(gather)
    small, plan = svd.shrink(model, torch.randn(2, 3, 20).double())
    assert plan.removed == 3
    x = torch.randn(1, 3, 33).double()
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)


def sizes_tried(model: nn.Module, *inputs: Tensor) -> tuple[list[list[tuple[int, ...]]], bool]:
    """The shapes of the inputs at each other size, and whether they are complete."""
    others = trace_other_sizes(model, trace(model, inputs))
    return [[tuple(value.shape) for value in other.inputs.tensors] for other in others.traces], others.complete


def test_every_dimension_but_the_channels_gets_another_size() -> None:
    assert sizes_tried(nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 8, 9)) == ([[(7, 3, 25, 28)]], True)
    assert sizes_tried(nn.Linear(5, 4), torch.zeros(2, 7, 5)) == ([[(7, 22, 5)]], True)


def test_windows_get_multiples_and_tables_get_less() -> None:
    windows = Net(lambda m, x: m.a(x).unflatten(-1, (x.shape[-1] // 4, 4)).sum(-1), a=nn.Conv1d(3, 4, 1))
    shapes, complete = sizes_tried(windows, torch.zeros(2, 3, 8))
    assert shapes == [[(7, 3, 16)]] and complete
    table = Net(lambda m, x: m.e.weight[: x.shape[1]] + x, e=nn.Embedding(8, 5))
    shapes, complete = sizes_tried(table, torch.zeros(2, 8, 5))
    assert shapes == [[(7, 7, 5)]] and complete


@pytest.mark.parametrize("gather", [lambda x: x.sum(1), lambda x: x.softmax(1).amax(1)])
def test_a_size_that_cannot_be_changed_lets_only_zeros_pass_a_sum(gather: Callable[[Tensor], Tensor]) -> None:
    positions = Net(
        lambda m, x: m.o(gather(m.a(x).sigmoid() + 0 * m.p.weight)),
        a=nn.Linear(5, 9),
        o=nn.Linear(9, 4),
        p=nn.Embedding(7, 9),
    ).double()
    with torch.no_grad():
        positions.a.weight[::3] = 0
    _, complete = sizes_tried(positions, torch.zeros(2, 7, 5).double())
    assert not complete
    assert svd.make_plan(positions, torch.zeros(2, 7, 5).double()).removed == 0


class TextbookAttention(nn.Module):
    """Attention written by hand: it divides by the root of a size that it reads from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(6, 12), nn.Linear(12, 5)
        self.q, self.k, self.v = (nn.Linear(12, 12) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.body(x))
        q, k, v = (layer(x).view(*x.shape[:2], 3, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))).softmax(-1)
        return self.out((scores @ v).transpose(1, 2).flatten(2))


NUMBERS: dict[str, Callable[[], nn.Module]] = {
    "attention": TextbookAttention,
    "channels": lambda: Net(
        lambda m, x: m.o(m.scaled(y := m.body(x)) / y.shape[-1]),
        body=nn.Linear(6, 12), scaled=nn.Linear(12, 8), o=nn.Linear(8, 4)),
    "root": lambda: Net(
        lambda m, x: m.o(m.q(y := torch.relu(m.body(x))) * m.q.weight.shape[0] ** -0.5 + y.mean()),
        body=nn.Linear(6, 12), q=nn.Linear(12, 8), o=nn.Linear(8, 4)),
    "full": lambda: Net(
        lambda m, x: m.o((y := torch.relu(m.body(x))) + torch.full((1,), float(y.shape[-1]), dtype=y.dtype)),
        body=nn.Linear(6, 12), o=nn.Linear(12, 4)),
    "tensor": lambda: Net(  # as RAFT divides its correlations
        lambda m, x: m.o(m.q(y := torch.relu(m.body(x))) / torch.sqrt(torch.tensor(y.shape[-1]))),
        body=nn.Linear(6, 12), q=nn.Linear(12, 8), o=nn.Linear(8, 4)),
    "shift": lambda: Net(
        lambda m, x: m.o(m.q(y := torch.relu(m.body(x))) + y.size(2)),
        body=nn.Linear(6, 12), q=nn.Linear(12, 8), o=nn.Linear(8, 4)),
}  # fmt: skip


@pytest.mark.parametrize("name", NUMBERS)
def test_channels_whose_number_is_computed_with_stay_and_the_others_go(name: str) -> None:
    torch.manual_seed(0)
    model = NUMBERS[name]().double().eval()
    with torch.no_grad():
        for layer_name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and layer_name not in ("out", "o"):
                layer.weight[::3] = 0
                layer.bias[::3] = 0
    small, plan = svd.shrink(model, torch.randn(2, 7, 6).double())
    for tokens in (7, 3):
        x = torch.randn(1, tokens, 6).double()
        torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-12)
    if name in ("attention", "channels", "tensor", "shift"):
        assert plan.removed >= 2
        assert any("in the code of" in group.reason and "computes with" in group.reason for group in plan.groups)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("settings", [{}, {"bidirectional": True}, {"num_layers": 2}], ids=str)
def test_the_input_of_a_recurrent_layer_shrinks(kind: type[nn.Module], settings: dict[str, int]) -> None:
    width = 18 if "bidirectional" in settings else 9
    model = (
        Net(
            lambda m, x: m.o(m.r(torch.relu(m.i(x)))[0]),
            i=nn.Linear(5, 12),
            r=kind(12, 9, batch_first=True, **settings),
            o=nn.Linear(width, 3),
        )
        .double()
        .eval()
    )
    with torch.no_grad():
        model.i.weight[::2] = 0
        model.i.bias[::4] = 1.0
    small, plan = svd.shrink(model, torch.randn(2, 7, 5).double())
    assert plan.removed == 6 and small.r.input_size == 6
    for batch, steps in ((3, 4), (1, 11)):
        x = torch.randn(batch, steps, 5).double()
        torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("is_indexed", [True, False])
def test_a_table_may_be_shorter_than_another_size_asks_for(is_indexed: bool) -> None:
    """Without data PyTorch does not check places, so a size that the network does not take seems to be accepted."""

    def add_positions(model: nn.Module, x: Tensor) -> Tensor:
        places, table = torch.arange(x.shape[1]), model.table.weight
        return model.head(model.body(x) + (table[places] if is_indexed else table.index_select(0, places)))

    model = Net(add_positions, body=nn.Linear(5, 9), table=nn.Embedding(8, 9), head=nn.Linear(9, 3)).double().eval()
    with torch.no_grad():
        model.body.weight[::3] = model.body.bias[::3] = model.table.weight[:, ::3] = 0
    small, plan = svd.shrink(model, torch.randn(2, 8, 5).double())
    assert plan.removed == 3
    x = torch.randn(3, 4, 5).double()
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-12)
