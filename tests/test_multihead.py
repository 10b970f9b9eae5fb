"""PyTorch's multi-head attention: heads and dimensions leave, exactly, and the rest of the package takes the module."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import ShrinkError
from nni_sparsevd.graph import ShrinkableMultiheadAttention, free_attentions_
from nni_sparsevd.shrinking import Plan, apply_plan_

HEADS, DIMENSIONS = 4, 2
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "time first": {"batch_first": False},
    "without biases": {"bias": False},
    "learned tokens": {"add_bias_kv": True},
    "a token of zeros": {"add_bias_kv": True, "add_zero_attn": True},
    "cross": {"kdim": 6, "vdim": 3},
}
CAUSAL = torch.triu(torch.ones(5, 7, dtype=torch.bool), 1)
PADDING = torch.arange(7)[None] > torch.tensor([[6], [4], [2]])
CALLS: dict[str, dict[str, Any]] = {
    "weights": {},
    "no weights": {"need_weights": False},
    "weights of each head": {"average_attn_weights": False},
    "causal": {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
    "a mask for each head": {"attn_mask": torch.linspace(-1, 1, 3 * HEADS * 35).double().view(3 * HEADS, 5, 7)},
    "padding": {"key_padding_mask": PADDING},
    "padding and causal": {"key_padding_mask": PADDING, "attn_mask": CAUSAL},
}


def make_attention(**settings: Any) -> nn.MultiheadAttention:
    attention = nn.MultiheadAttention(HEADS * DIMENSIONS, HEADS, **{"batch_first": True, **settings})
    for parameter in attention.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    return attention.double().eval()


@pytest.mark.parametrize("name", SETTINGS)
def test_the_form_that_can_lose_heads_computes_the_same(name: str) -> None:
    torch.manual_seed(0)
    settings = SETTINGS[name]
    attention = make_attention(**settings)
    freed = copy.deepcopy(attention)
    assert free_attentions_(freed) == [freed] and free_attentions_(freed) == []
    query, key, value = (
        torch.randn(3, tokens, width, dtype=torch.float64)
        for tokens, width in ((5, 8), (7, settings.get("kdim", 8)), (7, settings.get("vdim", 8)))
    )
    if settings.get("batch_first") is False:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    calls = [((query, key, value), options) for options in CALLS.values()]
    calls.append(
        ((query[0], key[0], value[0]), {}) if "time first" not in name else ((query[:, 0], key[:, 0], value[:, 0]), {})
    )
    for inputs, options in calls:
        expected, actual = attention(*inputs, **options), freed(*inputs, **options)
        torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=1e-12)


class Attending(nn.Module):
    """An attention between two linear layers, of a sequence to itself or to what another one makes of it."""

    def __init__(self, need_weights: bool = True, gives_weights: bool = False, **settings: Any) -> None:
        super().__init__()
        self.first, self.attention, self.last = nn.Linear(5, 8), make_attention(**settings), nn.Linear(8, 3)
        self.keys = nn.Linear(5, settings["kdim"]) if "kdim" in settings else None
        self.values = nn.Linear(5, settings["vdim"]) if "vdim" in settings else None
        self.need_weights, self.gives_weights = need_weights, gives_weights

    def forward(self, x: Tensor) -> Any:
        query = self.first(x)
        key = query if self.keys is None else self.keys(x)
        value = query if self.values is None else self.values(x)
        y, weights = self.attention(query, key, value, need_weights=self.need_weights)
        return (self.last(y), weights) if self.gives_weights else self.last(y)


@torch.no_grad()
def thin_(attention: nn.MultiheadAttention) -> None:
    """Head 1 has no values, and of the two dimensions of queries and keys the first is zero in every head."""
    width = HEADS * DIMENSIONS
    packed = attention.in_proj_weight
    weights = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    query, _, value = weights if packed is None else packed.split(width)
    query.view(HEADS, DIMENSIONS, -1)[:, 0] = 0
    value.view(HEADS, DIMENSIONS, -1)[1] = 0
    if attention.in_proj_bias is not None:
        query, _, value = attention.in_proj_bias.split(width)
        query.view(HEADS, DIMENSIONS)[:, 0] = 0
        value.view(HEADS, DIMENSIONS)[1] = 0
    if attention.bias_v is not None:
        attention.bias_v.view(HEADS, DIMENSIONS)[1] = 0


def assert_exact(model: nn.Module, *removed: int) -> nn.Module:
    """Shrink a network, and compare it with itself before, with and without gradients, at other lengths."""
    model = model.double().eval()
    plan = svd.make_plan(model, torch.randn(2, 6, 5, dtype=torch.float64))
    counts = [group.removed for group in plan.groups if "attention" in group.name or "attn" in group.name]
    assert tuple(counts) == removed, plan
    small = apply_plan_(copy.deepcopy(model), plan)
    for shape in ((2, 6, 5), (1, 11, 5)):
        x = torch.randn(shape, dtype=torch.float64)
        for with_gradients in (True, False):
            with torch.set_grad_enabled(with_gradients):
                torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-12)
    return small


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("name", SETTINGS)
def test_heads_and_dimensions_leave(name: str, need_weights: bool) -> None:
    torch.manual_seed(0)
    model = Attending(need_weights, **SETTINGS[name])
    thin_(model.attention)
    small = assert_exact(model, 1, 1, 0, 0).attention  # heads, dimensions of queries and keys, of values, outputs
    assert isinstance(small, ShrinkableMultiheadAttention)
    assert (small.num_heads, small.head_dim, small.value_head_dim, small.embed_dim) == (3, 1, 2, 8)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.attention.parameters())


def test_heads_whose_weights_are_an_output_stay() -> None:
    torch.manual_seed(0)
    model = Attending(gives_weights=True)
    thin_(model.attention)
    assert_exact(model, 0, 1, 0, 0)
    plan = svd.make_plan(model, torch.zeros(2, 6, 5).double())
    assert {group.name: group.reason for group in plan.groups}["attention"] == "mean over the channels"


def test_an_attention_that_loses_nothing_stays_what_it_was() -> None:
    torch.manual_seed(0)
    model = Attending()
    with torch.no_grad():
        model.last.weight[0] = 0
    assert type(assert_exact(model, 0, 0, 0, 0).attention) is nn.MultiheadAttention


def test_an_encoder_and_a_decoder_lose_heads_and_hidden_neurons() -> None:
    torch.manual_seed(0)

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
            settings = {"dim_feedforward": 12, "batch_first": True}
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, HEADS, **settings), 2)
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, HEADS, **settings), 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.last(self.decoder(y, self.encoder(y)))

    model = Translator()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                thin_(module)
            elif isinstance(module, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
                module.linear2.weight[:, ::3] = 0
    small = assert_exact(model, *(1, 1, 0), *(1, 1, 0), *(1, 1, 0), *(1, 1, 0))
    assert {layer.linear1.out_features for layer in (*small.encoder.layers, *small.decoder.layers)} == {8}


def test_a_plan_and_a_file_bring_the_smaller_attention_elsewhere(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attending().double().eval()
    thin_(model.attention)
    fresh, other = copy.deepcopy(model), copy.deepcopy(model)
    small, plan = svd.shrink(model, torch.randn(2, 6, 5, dtype=torch.float64))
    plan.save(tmp_path / "plan.json")
    svd.save(small, tmp_path / "small")
    x = torch.randn(3, 9, 5, dtype=torch.float64)
    for again in (apply_plan_(fresh, Plan.load(tmp_path / "plan.json")), svd.load(tmp_path / "small", other)):
        torch.testing.assert_close(again(x), small(x), rtol=0, atol=0)


def test_a_plan_that_does_not_fit_leaves_the_attention_as_it_was() -> None:
    torch.manual_seed(0)
    model = Attending().double().eval()
    thin_(model.attention)
    plan = svd.make_plan(model, torch.randn(2, 6, 5, dtype=torch.float64))
    other = Attending().double().eval()
    other.last = nn.Linear(8, 4).double()
    with pytest.raises(ShrinkError, match=r"last.weight"):
        apply_plan_(other, plan)
    assert type(other.attention) is nn.MultiheadAttention and not hasattr(other.attention, "value_head_dim")
    assert other.attention._qkv_same_embed_dim


class Unused(nn.Module):
    """Something that is computed and dropped."""

    def __init__(self, couples: bool) -> None:
        super().__init__()
        self.first, self.other, self.last = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(8, 3)
        self.couples = couples
        with torch.no_grad():
            self.last.weight[:, ::2] = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        _ = y + self.other(x) if self.couples else y.mean(-1)
        return self.last(y)


def test_what_is_not_used_pins_nothing_but_has_to_run() -> None:
    torch.manual_seed(0)
    for couples in (False, True):
        model = Unused(couples).double().eval()
        small, plan = svd.shrink(model, torch.randn(2, 5, dtype=torch.float64))
        assert plan.removed == 4
        assert small.other.out_features == (4 if couples else 8)  # the sides of the sum lose the same
        x = torch.randn(7, 5, dtype=torch.float64)
        torch.testing.assert_close(small(x), model(x), rtol=0, atol=1e-12)
