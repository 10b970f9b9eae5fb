"""Gates wherever channels can go: a closed gate removes its channel exactly, whatever writes the channel."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from shrinking import Net, image, outputs, prepared
from timm.layers import Attention, BlurPool2d, Conv2dSame, ScaledStdConv2d, SplitAttn, SqueezeExcite
from timm.models import levit
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

import nni_sparsevd as svd
from nni_sparsevd.errors import ModelError, SparseVDWarning
from nni_sparsevd.graph import channel_graph
from nni_sparsevd.masks import find_group_gates
from nni_sparsevd.nn import ChannelGate, find_gates, gate_sites, named_posteriors
from nni_sparsevd.regularize import choose_cutoffs
from nni_sparsevd.shrinking import shrink_
from nni_sparsevd.testing import assert_shrinks_exactly

TOKENS = torch.randn(2, 5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Apart(nn.Module):
    """Two heads of queries and keys of 4 dimensions and values of 6, each written by a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.head = nn.Linear(12, 8), nn.Linear(12, 8), nn.Linear(12, 12), nn.Linear(12, 3)
        self.heads = 2

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1)
        return self.head((scores @ v).transpose(1, 2).flatten(2)).mean(1)


def split(m: nn.Module, x: Tensor) -> Tensor:
    """Res2Net: each piece of a layer's outputs is added to what a convolution made of the piece before."""
    first, second, third = m.norm(m.a(x)).relu().chunk(3, 1)
    second = m.b(first) + second
    return m.head(torch.cat([first, second, m.c(second) + third], 1)).mean((2, 3))


@torch.no_grad()
def weight_normed(norm: Callable[..., nn.Module], layer: nn.Module) -> nn.Module:
    """In the form of a hook the weight stays a tensor that can be copied."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return norm(layer)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "grouped": (lambda: nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 18, 3, groups=3, padding=1),
        nn.BatchNorm2d(18), nn.ReLU(), nn.Conv2d(18, 4, 1)), image()),
    "grouped transposed": (lambda: nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.ReLU(), nn.ConvTranspose2d(12, 9, 2, 2, groups=3), nn.ReLU(), nn.Conv2d(9, 4, 1)),
        image()),
    "pieces": (lambda: Net(
        split, a=nn.Conv2d(3, 12, 1), norm=nn.BatchNorm2d(12), b=nn.Conv2d(4, 4, 3, padding=1),
        c=nn.Conv2d(4, 4, 3, padding=1), head=nn.Conv2d(12, 3, 1)), image()),
    "split attention": (lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), SplitAttn(8, 8, rd_channels=6, norm_layer=nn.BatchNorm2d), nn.Conv2d(8, 3, 1)),
        image()),
    "squeeze and excite": (lambda: nn.Sequential(
        nn.Conv2d(3, 9, 1), nn.BatchNorm2d(9), nn.SiLU(), SqueezeExcite(9, rd_channels=6), nn.Conv2d(9, 3, 1)),
        image()),
    "standardized weights": (lambda: nn.Sequential(
        ScaledStdConv2d(3, 9, 1), nn.GELU(), nn.Conv2d(9, 4, 3, padding=1)), image()),
    "blur": (lambda: nn.Sequential(
        nn.Conv2d(3, 9, 1), nn.BatchNorm2d(9), nn.ReLU(), BlurPool2d(9), nn.Conv2d(9, 4, 1)), image()),
    "same padding": (lambda: nn.Sequential(
        Conv2dSame(3, 9, 3, stride=2), nn.SiLU(), nn.Conv2d(9, 4, 1)), image()),
    "queries, keys and values in one": (lambda: Net(
        lambda m, x: m.head(m.attention(x)).mean(1), attention=Attention(12, num_heads=3),
        head=nn.Linear(12, 3)), TOKENS),
    "queries, keys and values apart": (Apart, TOKENS),
    "norms behind flattened tokens": (lambda: Net(
        lambda m, x: m.head(m.attention(x)).mean(1), head=nn.Linear(12, 3),
        attention=levit.Attention(12, key_dim=3, num_heads=2, attn_ratio=2.0, resolution=(1, 5))), TOKENS),
    "a norm behind transposed tokens": (lambda: Net(
        lambda m, x: m.head(m.norm(m.a(x).transpose(1, 2)).relu().transpose(1, 2)).mean(1), a=nn.Linear(12, 9),
        norm=nn.BatchNorm1d(9), head=nn.Linear(9, 3)), TOKENS),
    "weight norm": (lambda: nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), weight_normed(parametrizations.weight_norm, nn.Conv2d(6, 9, 3, padding=1)),
        nn.SiLU(), nn.Conv2d(9, 4, 1)), image()),
    "weight norm as a hook": (lambda: nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), weight_normed(weight_norm, nn.Conv2d(6, 9, 1, bias=False)), nn.GELU(),
        nn.Conv2d(9, 4, 3, padding=1)), image()),
}  # fmt: skip


def gated(name: str) -> tuple[nn.Module, Tensor, list[ChannelGate]]:
    """A network whose gates close every third channel."""
    make, x = NETWORKS[name]
    model = svd.sparsify_(prepared(make()), granularity="gate", example_inputs=x)
    gates = [posterior for _, posterior in named_posteriors(model) if isinstance(posterior, ChannelGate)]
    with torch.no_grad():
        for gate in gates:
            gate.mu.copy_(torch.linspace(0.7, 1.4, len(gate.mu)))
            gate.log_sigma2[1::3] = 9.0
    return model, x, gates


@pytest.mark.parametrize("name", NETWORKS)
def test_every_free_group_has_a_gate_and_a_closed_one_removes_its_channel(name: str) -> None:
    model, x, gates = gated(name)
    expected = outputs(model, x)
    masked = svd.bake_(copy.deepcopy(model))
    assert not any("gate" in key for key in masked.state_dict())
    assert (outputs(masked, x) - expected).abs().max() < 1e-12 * expected.abs().max()
    graph = channel_graph(masked, x)
    gate_of = find_group_gates(model, graph)
    assert set(gate_of) == {group.name for group in graph.groups if not group.pinned} and len(gates) == len(gate_of)
    _, plan = assert_shrinks_exactly(masked, x)
    for group in plan.groups:
        assert group.removed == (int((~gate_of[group.name].mask()).sum()) if group.name in gate_of else 0), group.name


@pytest.mark.parametrize("name", NETWORKS)
def test_gates_shrink_with_their_network_while_it_learns(name: str) -> None:
    model, x, gates = gated(name)
    closed = sum(int((~gate.mask()).sum()) for gate in gates)
    expected = outputs(model, x)
    assert shrink_(model, x).removed == closed and all(gate.mask().all() for gate in gates)
    assert (outputs(model, x) - expected).abs().max() < 1e-12 * expected.abs().max()
    baked = svd.bake_(copy.deepcopy(model))
    assert (outputs(baked, x) - expected).abs().max() < 1e-12 * expected.abs().max()
    model.train()(torch.randn_like(x)).square().sum().backward()
    assert all(gate.mu.grad.any() for gate in gates)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name.startswith("weight norm")])
@pytest.mark.parametrize("by_group", [False, True])
def test_structured_masks_of_a_weight_norm_mask_lengths_and_no_directions(name: str, by_group: bool) -> None:
    """A direction without any length would be divided by 0."""
    model, x, gates = gated(name)
    expected = outputs(model, x)
    masks = svd.compute_masks(model, structure="structured", example_inputs=x if by_group else None)
    masked = svd.bake_(model, masks)
    assert (outputs(masked, x) - expected).abs().max() < 1e-12 * expected.abs().max()
    _, plan = assert_shrinks_exactly(masked, x)
    assert plan.removed == sum(int((~gate.mask()).sum()) for gate in gates)


def test_masks_by_groups_decide_by_the_gates() -> None:
    model, x, _ = gated("queries, keys and values in one")
    masks = svd.compute_masks(model, structure="structured", example_inputs=x)
    by_group = svd.bake_(copy.deepcopy(model), masks)
    by_gate = svd.bake_(copy.deepcopy(model))
    assert (outputs(by_group, x) - outputs(by_gate, x)).abs().max() < 1e-12
    assert svd.make_plan(by_group, x).removed == svd.make_plan(by_gate, x).removed > 0


def test_places_are_in_the_state_dict_and_go_where_the_network_goes() -> None:
    model, x, _ = gated("queries, keys and values in one")
    fresh = svd.sparsify_(
        prepared(NETWORKS["queries, keys and values in one"][0]()), granularity="gate", example_inputs=x
    )
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(outputs(fresh, x), outputs(model, x))
    twin = copy.deepcopy(model)
    assert torch.equal(outputs(twin, x), outputs(model, x))
    assert not {id(gate) for _, _, gate in gate_sites(twin)} & {id(gate) for _, _, gate in gate_sites(model)}


def test_keys_have_no_gate_where_queries_do() -> None:
    """One factor of 0 is enough for a product, and the noise of two would be multiplied."""
    model, _, gates = gated("queries, keys and values apart")
    assert {name for name, _, _ in gate_sites(model)} == {"q", "v"}
    assert sorted(len(gate.mu) for gate in gates) == [2, 4, 6]  # heads, dimensions of queries and keys, of values


def test_a_gate_stands_behind_the_norm_that_follows_and_not_before_it() -> None:
    """Before it, the norm's shift would bring a channel of zeros back to life."""
    model, _, _ = gated("norms behind flattened tokens")
    assert {name for name, _, _ in gate_sites(model)} == {"attention.qkv.bn", "attention.proj.ln.bn"}


class Bounded(nn.Conv2d):
    """A convolution by the hyperbolic tangent of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.tanh(), self.bias)


def test_what_a_gate_could_not_be_baked_into_has_none() -> None:
    model = prepared(nn.Sequential(Bounded(3, 9, 1), nn.GELU(), nn.Conv2d(9, 4, 1)))
    with pytest.raises(ModelError, match=r"no parameter of 0 \(Bounded\) scales its outputs"):
        svd.sparsify_(model, granularity="gate", example_inputs=image())


def test_weight_norm_over_what_is_no_output_gets_no_gate_and_is_named() -> None:
    """The lengths of a transposed convolution belong to its inputs, of which there are as many here."""
    transposed = weight_normed(parametrizations.weight_norm, nn.ConvTranspose2d(6, 6, 2, 2))
    model = prepared(nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), transposed, nn.ReLU(), nn.Conv2d(6, 4, 1)))
    x = image()
    assert [group.reason for group in svd.make_plan(model, x).groups if group.name == "2"] == [
        "weight norm over this axis: removing a part of a direction changes its norm"
    ]
    svd.sparsify_(model, granularity="gate", example_inputs=x)
    assert [name for name, _, _ in gate_sites(model)] == ["0"]


def test_a_layer_whose_weight_another_layer_has_gets_no_gate() -> None:
    first, second = nn.Linear(12, 9), nn.Linear(12, 9)
    second.weight = first.weight
    model = prepared(Net(lambda m, x: m.head(m.a(x).relu() * m.b(x)), a=first, b=second, head=nn.Linear(9, 3)))
    with pytest.raises(ModelError, match=r"a shares its weight with b\.weight"):
        svd.sparsify_(model, granularity="gate", example_inputs=TOKENS)


def test_a_weight_that_is_used_without_its_layer_gets_no_gate() -> None:
    """The gate stands behind the module, and the module is never called."""
    model = prepared(
        Net(lambda m, x: m.head(F.linear(x, m.a.weight).relu()), a=nn.Linear(12, 9, bias=False), head=nn.Linear(9, 3))
    )
    with pytest.raises(ModelError, match=r"no module returns what a\.weight writes"):
        svd.sparsify_(model, granularity="gate", example_inputs=TOKENS)


def test_a_gate_is_not_baked_into_a_weight_that_other_code_uses() -> None:
    model = prepared(
        Net(
            lambda m, x: m.head(F.linear(torch.relu(m.first(x)), m.first.weight.T) + m.other(x).relu()),
            first=nn.Linear(12, 8),
            other=nn.Linear(12, 12),
            head=nn.Linear(12, 3),
        )
    )
    with pytest.raises(ModelError, match=r"first: 8 channels have no gate: the code of Net uses first\.weight, too"):
        svd.sparsify_(model, granularity="gate", example_inputs=TOKENS, exclude=["other"])


def test_hooks_of_others_see_what_a_gate_has_scaled() -> None:
    model = prepared(nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)))
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    svd.sparsify_(model, granularity="gate", example_inputs=TOKENS)
    (gate,) = find_gates(model)
    with torch.no_grad():
        gate.mu.copy_(torch.linspace(0.7, 1.4, 8))
        gate.log_sigma2[1::3] = 9.0
    expected = outputs(model, TOKENS)
    assert (outputs(svd.bake_(model), TOKENS) - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("keys_first", [False, True])
def test_queries_and_keys_of_one_layer_have_one_gate(keys_first: bool) -> None:
    def attend(m: nn.Module, x: Tensor) -> Tensor:
        calls = [m.first(other) for other in (x, x.flip(1))]
        keys, queries = calls if keys_first else calls[::-1]
        return m.head((0.3 * queries @ keys.mT).softmax(-1) @ m.values(x)).mean(1)

    layers = {"first": nn.Linear(12, 8), "values": nn.Linear(12, 6), "head": nn.Linear(6, 3)}
    model = svd.sparsify_(prepared(Net(attend, **layers)), granularity="gate", example_inputs=TOKENS)
    with torch.no_grad():
        for gate in find_gates(model):
            gate.log_sigma2[1::3] = 9.0
    expected = outputs(model, TOKENS)
    small, plan = assert_shrinks_exactly(svd.bake_(model), TOKENS)
    assert plan.removed == 3 + 2 and len(small.first.weight) == 5
    assert (outputs(small, TOKENS) - expected).abs().max() < 1e-12 * expected.abs().max()


def test_the_cross_attention_of_a_decoder_has_no_gate_and_is_named() -> None:
    decoder = nn.TransformerDecoderLayer(12, 2, 16, batch_first=True)
    model = prepared(Net(lambda m, x: m.decoder(x, x.flip(1)), decoder=decoder))
    with pytest.warns(SparseVDWarning, match=r"no module returns what decoder\.self_attn\.in_proj_weight writes"):
        svd.sparsify_(model, granularity="gate", example_inputs=TOKENS)
    assert [name for name, _ in named_posteriors(model)] == ["decoder.linear1.gate"]


def test_what_is_left_without_a_gate_is_named_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.GELU(), Bounded(6, 9, 1), nn.GELU(), nn.Conv2d(9, 4, 1)).double()
    expected = {"2": "9 channels have no gate: no parameter of 2 (Bounded) scales its outputs"}
    assert svd.find_passed_over(model, granularity="gate", example_inputs=image()) == expected
    assert not svd.find_passed_over(model, granularity="gate", example_inputs=image(), exclude=["2"])
    with pytest.warns(SparseVDWarning, match=r"2 \(9 channels have no gate") as caught:
        svd.sparsify_(model, granularity="gate", example_inputs=image())
    assert len(caught) == 1 and [name for name, _, _ in gate_sites(model)] == ["0"]


def test_weights_without_a_posterior_are_named() -> None:
    model = Net(lambda m, x: x, rnn=nn.LSTM(6, 4), attention=nn.MultiheadAttention(6, 2), a=nn.Linear(6, 4))
    model.register_parameter("w", nn.Parameter(torch.zeros(6, 4)))
    model.register_parameter("pos_embed", nn.Parameter(torch.zeros(1, 6, 4)))
    passed_over = svd.find_passed_over(model)
    attention = ["attention.in_proj_weight", "attention.out_proj.weight"]
    assert list(passed_over) == ["w", "rnn.weight_ih_l0", "rnn.weight_hh_l0", *attention]
    assert "MultiheadAttention" in passed_over["attention.in_proj_weight"]
    with pytest.warns(SparseVDWarning, match=r"w \(no posterior fits what Net does with this weight\); rnn"):
        svd.sparsify_(model)


@pytest.mark.parametrize(
    ("places", "several"), [(None, False), ([0, 1, -1, -1], False), ([-1, 1, 1, 0], True), ([0, 0, 1, 1], True)]
)
def test_a_gate_says_whether_a_channel_scales_several_outputs(places: list[int] | None, several: bool) -> None:
    gate, site = ChannelGate(4 if places is None else 2), nn.Linear(3, 4)
    gate.attach_(site, -1, None if places is None else torch.tensor(places))
    gate.register_buffer("note", torch.zeros(3))  # of a user's own
    assert gate.scales_several_outputs() == several


def test_heads_leave_one_by_one_and_neurons_in_multiples() -> None:
    model = svd.sparsify_(Apart().double(), granularity="gate", example_inputs=TOKENS)
    heads = [gate for gate in find_gates(model) if gate.scales_several_outputs()]
    assert heads
    with torch.no_grad():
        for gate in find_gates(model):
            gate.log_sigma2.copy_(torch.linspace(-8, -10, len(gate.mu)))
    cutoffs = choose_cutoffs(model, TOKENS, "parameters", 1.0, 2)
    for gate, cutoff in cutoffs.items():
        assert int((gate.log_alpha() >= cutoff).sum()) == (1 if gate in heads else 2)


class Offset(nn.Module):
    """Adds a tensor that no buffer holds, so that a network with it cannot run without data."""

    def __init__(self) -> None:
        super().__init__()
        self.held = [torch.ones(1, 3, 1, 1, dtype=torch.float64)]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.held[0]


def test_gates_stand_behind_depthwise_layers_also_where_a_network_has_to_see_its_input() -> None:
    depthwise = nn.Conv2d(9, 9, 3, groups=9, bias=False)
    layers = [nn.Conv2d(3, 9, 1), nn.BatchNorm2d(9), nn.ReLU(), depthwise, nn.BatchNorm2d(9)]
    for first in (nn.Identity(), Offset()):
        model = prepared(nn.Sequential(first, *copy.deepcopy(layers), nn.Conv2d(9, 4, 1)))
        assert channel_graph(model, image()).trace.on_meta == isinstance(first, nn.Identity)
        svd.sparsify_(model, granularity="gate", example_inputs=image())
        assert [name for name, _, _ in gate_sites(model)] == ["5"]
