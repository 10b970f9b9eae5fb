"""Masks: what is kept at which threshold, ratio and structure, counted exactly; and what is no mask."""

import copy
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.errors import MaskError, ModelError, SettingError
from nni_sparsevd.masks import (
    apply_masks_,
    compute_masks_by_each,
    count_weights,
    decision,
    flatten_masks,
    unflatten_masks,
    validate_masks,
)
from nni_sparsevd.nn import find_gates, named_posteriors
from nni_sparsevd.posterior import group_log_alpha
from nni_sparsevd.settings import MaskSettings


class Net(nn.Module):
    """Two branches that are added, a transposed convolution and a head: 900 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 8, 3, padding=1)
        self.right = nn.Conv2d(3, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 12, 2, 2)
        self.hidden = nn.Linear(12, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.left(x) + self.norm(self.right(x)).relu()
        return self.head(self.hidden(self.up(x).relu().mean((2, 3))).relu())


WEIGHTS = {"left": 216, "right": 24, "up": 384, "hidden": 192, "head": 64}
IMAGE = torch.zeros(2, 3, 8, 8)


def trained(**settings: object) -> nn.Module:
    """With posteriors as after training, about half of them beyond the threshold."""
    torch.manual_seed(0)
    model = svd.sparsify_(Net(), example_inputs=IMAGE, **settings)
    with torch.no_grad():
        for parameter in [model.left.bias, model.up.bias, model.hidden.bias, model.norm.bias]:
            parameter.normal_()
        for _, found in named_posteriors(model):
            theta = found.weight if hasattr(found, "weight") else found.mu
            found.log_sigma2.copy_((theta.square() + 1e-12).log() + 3 + 2 * torch.randn(theta.shape))
    return model


def removed(masks: svd.Masks, key: str = "weight") -> dict[str, int]:
    return {name: int((targets[key] == 0).sum()) for name, targets in masks.items() if key in targets}


# Single weights.


def test_the_default_is_what_the_layers_compute() -> None:
    model = trained(threshold=2.5)
    model.hidden.threshold = 4.0  # each layer's own
    masks = svd.compute_masks(model)
    assert set(masks) == set(WEIGHTS)
    for name, layer in named_posteriors(model):
        assert torch.equal(masks[name]["weight"].bool(), layer.mask()) and set(masks[name]) == {"weight"}
        assert 0 < masks[name]["weight"].sum() < layer.weight.numel()


def test_a_threshold_replaces_the_layers_own() -> None:
    model = trained()
    masks = svd.compute_masks(model, threshold=1.0)
    for name, layer in named_posteriors(model):
        assert torch.equal(masks[name]["weight"].bool(), layer.log_alpha() < 1.0)
        assert (masks[name]["weight"] == 0).sum() > (~layer.mask()).sum()


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.73, 0.95])
def test_a_ratio_per_layer_is_exact(ratio: float) -> None:
    model = trained()
    masks = svd.compute_masks(model, ratio=ratio, scope="layer")
    assert removed(masks) == {name: round(ratio * size) for name, size in WEIGHTS.items()}
    for name, layer in named_posteriors(model):
        score, kept = layer.log_alpha(), masks[name]["weight"].bool()
        if ratio:
            assert score[kept].max() <= score[~kept].min()  # the least relevant go first


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.73, 0.95])
def test_a_global_ratio_is_exact(ratio: float) -> None:
    model = trained()
    masks = svd.compute_masks(model, ratio=ratio)
    assert sum(removed(masks).values()) == round(ratio * sum(WEIGHTS.values()))
    kept = torch.cat([layer.log_alpha()[masks[name]["weight"].bool()] for name, layer in named_posteriors(model)])
    gone = torch.cat([layer.log_alpha()[~masks[name]["weight"].bool()] for name, layer in named_posteriors(model)])
    assert not ratio or kept.max() <= gone.min()


def test_a_ratio_is_exact_among_equals() -> None:
    model = svd.sparsify_(nn.Sequential(nn.Linear(10, 10)))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    assert removed(svd.compute_masks(model, ratio=0.37)) == {"0": 37}


def test_gates_keep_to_the_threshold() -> None:
    model = trained(granularity="both")
    for settings in ({}, {"ratio": 0.5}):
        masks = svd.compute_masks(model, **settings)
        kept = model.up.gate.mask()
        assert 0 < kept.sum() < 12
        assert torch.equal(masks["up"]["bias"].bool(), kept)
        assert (masks["up"]["weight"][:, ~kept] == 0).all() and (masks["up"]["weight"][:, kept] != 0).any()
        assert torch.equal(masks["norm"]["weight"].bool(), model.norm.gate.mask())


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_ratio_of_gates_alone_counts_their_channels(scope: Literal["global", "layer"]) -> None:
    """It ended in `torch.cat(): expected a non-empty list` after the training."""
    model = trained(granularity="gate")
    masks = svd.compute_masks(model, ratio=0.5, scope=scope)
    scores = torch.cat([gate.log_alpha().detach() for gate in find_gates(model)])
    kept = {gate: gate.mask() for gate in find_gates(model)}
    for gate in kept:
        cut = scores.median() if scope == "global" else gate.log_alpha().median()
        kept[gate] = gate.log_alpha() <= cut
    assert torch.equal(masks["up"]["bias"].bool(), kept[model.up.gate])
    assert torch.equal(masks["hidden"]["bias"].bool(), kept[model.hidden.gate])
    assert sum(int(mask.sum()) for mask in kept.values()) == len(scores) // 2


# N of M.


@pytest.mark.parametrize(("keep", "block"), [(2, 4), (1, 4), (1, 2), (4, 4)])
def test_n_of_m_is_exact_in_every_block(keep: int, block: int) -> None:
    model = trained()
    masks = svd.compute_masks(model, structure="n:m", keep=keep, block=block)
    assert (masks["left"]["weight"] == 1).all()  # 3 inputs are no whole number of blocks
    inputs = {"up": 0, "hidden": 1, "head": 1}
    for name, axis in inputs.items():
        layer = model.get_submodule(name)
        kept = masks[name]["weight"].movedim(axis, -1).unflatten(-1, (-1, block))
        assert (kept.sum(-1) == keep).all()
        score = layer.log_alpha().movedim(axis, -1).unflatten(-1, (-1, block))
        worst_kept = score.masked_fill(kept == 0, -1e9).amax(-1)
        best_gone = score.masked_fill(kept == 1, 1e9).amin(-1)
        assert (worst_kept <= best_gone).all()


def test_gates_keep_to_the_threshold_beside_blocks() -> None:
    """Channels that the network silences in evaluation mode came back in the baked one."""
    model = trained(granularity="both")
    masks = svd.compute_masks(model, structure="n:m")
    kept = model.up.gate.mask()
    assert 0 < kept.sum() < 12
    assert torch.equal(masks["up"]["bias"].bool(), kept)
    assert (masks["up"]["weight"][:, ~kept] == 0).all() and (masks["up"]["weight"][:, kept] != 0).any()


class Table(nn.Module):
    """A table behind the head that reads it: the head comes first, and its rows are those of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 8, bias=False)
        self.table = nn.Embedding(8, 4, padding_idx=2)
        self.head.weight = self.table.weight


@pytest.mark.parametrize(
    "settings", [{"ratio": 0.95}, {"ratio": 0.95, "scope": "layer"}, {"structure": "n:m"}], ids=str
)
def test_a_padding_row_is_never_removed(settings: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = svd.sparsify_(Table())
    mask = svd.compute_masks(model, **settings)["table"]["weight"]
    assert mask[2].all() and not mask.all()


def test_a_padding_row_has_no_part_in_the_score_of_a_channel() -> None:
    torch.manual_seed(0)
    model = svd.sparsify_(nn.Sequential(nn.Embedding(6, 4, padding_idx=0)))
    with torch.no_grad():
        model[0].weight.mul_(1e-5)
        model[0].log_sigma2[1:] = -20.0
    log_alpha = group_log_alpha(model[0].weight[1:], model[0].log_sigma2[1:], 0)
    for threshold in (float(log_alpha.min()) + 1e-3, float(log_alpha.max()) + 1e-3):
        masks = svd.compute_masks(model, structure="structured", threshold=threshold, allow_empty=True)
        assert torch.equal(masks["0"]["weight"][0].bool(), log_alpha < threshold)


# Whole channels.


def test_structured_layer_by_layer() -> None:
    model = trained()
    masks = svd.compute_masks(model, structure="structured", threshold=3.0)
    for name, layer in named_posteriors(model):
        dim = 1 if name == "up" else 0
        others = [d for d in range(layer.weight.dim()) if d != dim]
        kept = group_log_alpha(layer.weight, layer.log_sigma2, others) < 3.0
        expected = kept.view([-1 if d == dim else 1 for d in range(layer.weight.dim())]).expand_as(layer.weight)
        assert torch.equal(masks[name]["weight"].bool(), expected)
        assert layer.bias is None or torch.equal(masks[name]["bias"].bool(), kept)


@pytest.mark.parametrize("coupled", [False, True])
def test_structured_masks_keep_to_the_layers_own_threshold(coupled: bool) -> None:
    model = trained(threshold=0.0)
    inputs = {"example_inputs": IMAGE} if coupled else {}
    own = svd.compute_masks(model, structure="structured", allow_empty=True, **inputs)
    asked = svd.compute_masks(model, structure="structured", threshold=0.0, allow_empty=True, **inputs)
    other = svd.compute_masks(model, structure="structured", threshold=3.0, allow_empty=True, **inputs)
    assert removed(own) == removed(asked) != removed(other)


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_structured_ratios_count_channels(ratio: float) -> None:
    model = trained()
    masks = svd.compute_masks(model, structure="structured", ratio=ratio, scope="layer")
    assert removed(masks, "bias") == {"left": 8 * ratio, "up": 12 * ratio, "hidden": 16 * ratio, "head": 4 * ratio}
    masks = svd.compute_masks(model, structure="structured", ratio=ratio)
    channels = {"left": 8, "right": 8, "up": 12, "hidden": 16, "head": 4}
    per_channel = {name: WEIGHTS[name] // channels[name] for name in channels}
    assert sum(count // per_channel[name] for name, count in removed(masks).items()) == 48 * ratio


def test_coupled_channels_go_together() -> None:
    model = trained()
    masks = svd.compute_masks(model, structure="structured", ratio=0.25, scope="layer", example_inputs=IMAGE)
    assert "head" not in masks  # the outputs of the network are pinned
    dead = masks["left"]["bias"] == 0
    assert dead.sum() == 2
    for target in (masks["right"]["weight"][:, 0, 0, 0], masks["norm"]["weight"], masks["norm"]["bias"]):
        assert torch.equal(target == 0, dead)
    for name, dim in (("left", 0), ("right", 0), ("up", 1)):
        mask = masks[name]["weight"].movedim(dim, 0).flatten(1)
        assert ((mask == 0).all(1) | (mask == 1).all(1)).all()
    # by the log alpha of all the weights that write the channel
    squares = sum(model.get_submodule(n).weight.square().sum((1, 2, 3)) for n in ("left", "right"))
    noise = sum(model.get_submodule(n).log_sigma2.exp().sum((1, 2, 3)) for n in ("left", "right"))
    assert set((noise / squares).argsort(descending=True)[:2].tolist()) == set(dead.nonzero().flatten().tolist())


@pytest.mark.parametrize("granularity", ["weight", "gate", "both"])
def test_coupled_channels_can_be_shrunk_away(granularity: str) -> None:
    model = trained(granularity=granularity)
    masks = svd.compute_masks(model, structure="structured", ratio=0.25, scope="layer", example_inputs=IMAGE)
    small, plan = svd.shrink(model, IMAGE, masks)
    assert plan.removed == 2 + 3 + 4
    assert (small.left.out_channels, small.up.out_channels, small.hidden.out_features) == (6, 9, 12)


def test_a_group_keeps_its_most_relevant_channel() -> None:
    model = trained()
    with torch.no_grad():
        for _, layer in named_posteriors(model):
            layer.log_sigma2.add_(30.0)
    masks = svd.compute_masks(model, structure="structured", example_inputs=IMAGE)
    validate_masks(model, masks)
    assert [int(masks[name]["bias"].sum()) for name in ("left", "up", "hidden")] == [1, 1, 1]
    empty = svd.compute_masks(model, structure="structured", example_inputs=IMAGE, allow_empty=True)
    assert [int(empty[name]["bias"].sum()) for name in ("left", "up", "hidden")] == [0, 0, 0]


class Residual(nn.Module):
    """Both `stem` and `last` write the channels that `first` and `head` read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(5, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.last(self.first(x).relu()))


def test_several_decisions_are_those_of_single_calls_on_one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model, traced = trained(granularity="both"), []

    def count_and_trace(*arguments: object, **keywords: object) -> svd.graph.ChannelGraph:
        traced.append(keywords)
        return svd.channel_graph(*arguments, **keywords)

    monkeypatch.setattr(decision, "channel_graph", count_and_trace)
    kinds = [{"structure": "structured", "threshold": each} for each in (1.0, 3.0, 5.0)] + [{"threshold": 3.0}]
    settings = [MaskSettings.model_validate(kind) for kind in kinds]
    together = []
    for masks in compute_masks_by_each(model, settings, IMAGE):
        assert torch.is_grad_enabled()
        together.append(masks)
    assert len(traced) == 1
    for masks, chosen in zip(together, settings, strict=True):
        alone = flatten_masks(svd.compute_masks(model, chosen, example_inputs=IMAGE))
        assert alone.keys() == flatten_masks(masks).keys()
        assert all(torch.equal(value, alone[name]) for name, value in flatten_masks(masks).items())
    assert len({sum(removed(masks).values()) for masks in together}) == 4


def test_the_threshold_of_a_group_is_that_of_a_layer_which_writes_it() -> None:
    """It was that of `first`, which reads the channels before `last` writes them."""
    torch.manual_seed(0)
    model = svd.sparsify_(Residual(), exclude=["stem"])
    with torch.no_grad():
        squares = model.last.weight.square().sum(1, keepdim=True)
        model.last.log_sigma2.copy_((squares / 5).log() + torch.arange(6.0).view(6, 1))
    model.last.threshold, model.first.threshold = 2.5, 50.0
    masks = svd.compute_masks(model, structure="structured", example_inputs=torch.zeros(1, 3))
    assert masks["last"]["bias"].tolist() == [1, 1, 1, 0, 0, 0]


# Refusals.

REFUSED: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "plain": (lambda: svd.compute_masks(Net()), ModelError, "Net has no posterior"),
    "both": (lambda: svd.compute_masks(trained(), MaskSettings(), ratio=0.5), SettingError, r"both \(found ratio\)"),
    "held out": (lambda: svd.compute_masks(trained(), threshold="held_out"), SettingError, "held_out"),
    "ratio": (lambda: svd.compute_masks(trained(), ratio=1.0), SettingError, "ratio"),
    "key": (lambda: svd.compute_masks(trained(), sparsity=0.5), SettingError, "sparsity"),
    "n:m of gates": (
        lambda: svd.compute_masks(trained(granularity="gate"), structure="n:m"), ModelError, "Net has gates alone",
    ),
    "n:m": (lambda: svd.MaskSettings(structure="n:m", keep=5), ValueError, "masks.keep: 5 of every 4"),
    "n:m with a ratio": (
        lambda: svd.compute_masks(trained(), structure="n:m", ratio=0.5), SettingError,
        "masks.ratio = 0.5 and structure = 'n:m' both say",
    ),
    "no group": (
        lambda: svd.compute_masks(
            svd.sparsify_(nn.Linear(3, 2)), structure="structured", example_inputs=torch.zeros(1, 3)
        ), ModelError, "Linear has no channel group",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case: str) -> None:
    act, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        act()


WRONG = {
    "unknown module": ({"hiden": {"weight": torch.ones(16, 12)}}, "Net has no module 'hiden'"),
    "unknown parameter": ({"hidden": {"wait": torch.ones(16, 12)}}, r"hidden \(Linear\) has no parameter 'wait'"),
    "no bias": ({"right": {"bias": torch.ones(8)}}, r"right \(Conv2d\) has no parameter 'bias'"),
    "shape": (
        {"hidden": {"weight": torch.ones(12, 16)}},
        r"hidden\.weight has the shape \(16, 12\), its mask \(12, 16\)",
    ),
    "broadcast": (
        {"hidden": {"weight": torch.ones(16, 1)}},
        r"hidden\.weight has the shape \(16, 12\), its mask \(16, 1\)",
    ),
    "fraction": ({"head": {"weight": torch.full((4, 16), 0.5)}}, r"head\.weight holds other values than 0 and 1"),
    "negative": ({"head": {"bias": torch.tensor([1.0, 1, 1, -1])}}, r"head\.bias holds other values than 0 and 1"),
    "nan": ({"head": {"bias": torch.tensor([1.0, 1, 1, float("nan")])}}, r"head\.bias holds other values"),
    "empty": ({"head": {"weight": torch.zeros(4, 16)}}, r"head\.weight removes the whole layer"),
}


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("act", [validate_masks, svd.bake_, lambda m, masks: svd.shrink(m, IMAGE, masks)])
def test_what_is_no_mask_is_named(case: str, act: Callable[[nn.Module, svd.Masks], object]) -> None:
    masks, message = WRONG[case]
    model = Net()
    before = copy.deepcopy(model.state_dict())
    good = {"left": {"weight": torch.zeros(8, 3, 3, 3).index_fill_(0, torch.tensor([0]), 1.0)}}
    with pytest.raises(MaskError, match=message):
        act(model, good | masks)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())  # the good one neither


def test_good_masks_pass_whatever_their_type() -> None:
    model = Net()
    keep = torch.arange(4) > 0
    for dtype in (torch.bool, torch.uint8, torch.float32, torch.float64):
        validate_masks(model, {"head": {"weight": keep[:, None].expand(4, 16).to(dtype), "bias": keep.to(dtype)}})
    validate_masks(model, {"head": {"bias": torch.zeros(4)}})  # a layer without biases is a layer
    validate_masks(model, {"head": {"weight": torch.zeros(4, 16)}}, allow_empty=True)
    validate_masks(model, {})


# Applying, counting, storing.


def test_masked_values_are_plus_zero_and_the_rest_is_untouched() -> None:
    model = Net()
    with torch.no_grad():
        model.head.weight[0] = float("-inf")  # a product would be NaN
        model.head.weight[1] = -1.0
    before = model.head.weight.clone()
    mask = torch.ones(4, 16)
    mask[:2] = 0
    apply_masks_(model, {"head": {"weight": mask}})
    assert (model.head.weight[:2] == 0).all() and not torch.signbit(model.head.weight[:2]).any()
    assert torch.equal(model.head.weight[2:], before[2:])


def test_weights_are_counted_without_biases_and_norms() -> None:
    model = Net()
    total = sum(WEIGHTS.values())
    assert count_weights(model, {}) == (total, total)
    masks = {"head": {"weight": torch.eye(4, 16), "bias": torch.zeros(4)}, "norm": {"weight": torch.zeros(8)}}
    assert count_weights(model, masks) == (total - 60, total)


def test_flatten_and_unflatten_are_inverse() -> None:
    masks = svd.compute_masks(trained(granularity="both"))
    flat = flatten_masks(masks)
    assert set(flat) >= {"left.weight", "norm.bias"} and all(mask.dtype == torch.uint8 for mask in flat.values())
    again = unflatten_masks(flat)
    assert {n: set(t) for n, t in again.items()} == {n: set(t) for n, t in masks.items()}
    assert all(
        torch.equal(again[n][k], m) and again[n][k].dtype == m.dtype for n, t in masks.items() for k, m in t.items()
    )
    nested = {"a.b.0": {"weight": torch.ones(2), "bias": torch.zeros(1)}, "": {"scale": torch.ones(1)}}
    assert flatten_masks(unflatten_masks(flatten_masks(nested))).keys() == flatten_masks(nested).keys()
    assert unflatten_masks(flatten_masks(nested)).keys() == nested.keys()


@pytest.mark.parametrize("variance", ["weight", "channel"])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_channels_of_a_grouped_transposed_convolution_are_masked_one_by_one(groups: int, variance: str) -> None:
    model = svd.sparsify_(nn.Sequential(nn.ConvTranspose2d(6, 12, 2, groups=groups)), variance=variance)
    layer = model[0]
    with torch.no_grad():  # output channels 1 and 6 are noise, whichever group writes them
        for channel in (1, 6):
            group, place = divmod(channel, 12 // groups)
            layer.weight.view(groups, 6 // groups, 12 // groups, 2, 2)[group, :, place] *= 1e-6
    masks = svd.compute_masks(model, structure="structured")["0"]
    assert masks["bias"].shape == (12,) and masks["weight"].shape == layer.weight.shape
    assert masks["bias"].eq(0).nonzero().flatten().tolist() == [1, 6]
    x = torch.randn(2, 6, 3, 3)
    removed = svd.bake_(model, {"0": masks})(x).flatten(2).abs().sum((0, 2)) == 0
    assert removed.nonzero().flatten().tolist() == [1, 6]
