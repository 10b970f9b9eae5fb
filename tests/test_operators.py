"""The table of operators: each row has a rule for channels and a rule for constants, or says why not."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (brings its operators)
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.graph import NotCovered, call_rule
from nni_sparsevd.graph.nodes import Graph, Node
from nni_sparsevd.graph.operators import LIVE, OPERATORS, NoRule, Operator
from nni_sparsevd.graph.operators.elementwise import broadcast_channels, elementwise_channels, pass_value

aten = torch.ops.aten
GRID = torch.linspace(-3.1, 3.3, 37, dtype=torch.float64).view(1, 37, 1, 1)
POSITIVE = (GRID + 3.5) / 7
"""Between 0 and 1, for operators that take no other numbers."""
SETTINGS: dict[str, tuple[object, ...]] = {
    "hardtanh": (-0.5, 0.4),
    "leaky_relu": (0.2,),
    "clamp": (-0.5, 0.4),
    "clamp_min": (-0.5,),
    "clamp_max": (0.4,),
    "threshold": (0.2, 7.0),
    "rsub": (0.4,),
    "pow": (3,),
    "dropout": (0.5, False),
    "feature_dropout": (0.5, False),
    "alpha_dropout": (0.5, False),
    "remainder": (0.45,),
    "fmod": (0.45,),
    "full_like": (0.3,),
    "fill": (0.3,),
} | dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge"), (0.3,))
SECOND = {aten.clamp_min.Tensor, aten.clamp_max.Tensor, aten.rsub.Tensor}
DOMAIN = {"sqrt", "rsqrt", "log", "log2", "log10", "log1p", "logit", "asin", "acos", "atanh"}
MADE_ANEW = {
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.fill.Scalar,
    aten.zero.default,
}
"""Operators whose result is known whatever they are called with."""


def name_of(target: object) -> str:
    return str(target).removeprefix("aten.")


ROWS = {name_of(target): (target, row) for target, row in sorted(OPERATORS.items(), key=lambda item: name_of(item[0]))}
FOLLOWED = [
    name
    for name, (_, row) in ROWS.items()
    if row.channel_rule is elementwise_channels and not isinstance(row.constant_rule, NoRule)
]


@pytest.mark.parametrize("name", ROWS)
def test_an_operator_has_both_rules_or_says_why_not(name: str) -> None:
    target, row = ROWS[name]
    assert isinstance(row, Operator) and target in row.targets
    for rule in (row.channel_rule, row.constant_rule):
        assert len(rule.because) > 20 if isinstance(rule, NoRule) else inspect.getdoc(rule)


@pytest.mark.parametrize("name", ROWS)
def test_rules_take_what_the_operator_is_called_with(name: str) -> None:
    """The arguments of PyTorch's own schema fit the signatures, so that no ordinary call is uncovered."""
    target, row = ROWS[name]
    arguments = schema_of(target).arguments
    by_place = [argument.name for argument in arguments if not argument.kwarg_only]
    by_name = {argument.name: None for argument in arguments if argument.kwarg_only}
    least = [argument.name for argument in arguments if not argument.kwarg_only and not argument.has_default_value()]
    for rule, own in ((row.channel_rule, ("equations", "node")), (row.constant_rule, ("node",))):
        if not isinstance(rule, NoRule):
            inspect.signature(rule).bind(*own, *least)
            inspect.signature(rule).bind(*own, *by_place, **only_taken(target, rule, by_name))


def test_every_operator_of_the_vision_libraries_has_a_row() -> None:
    """The list that `examples/benchmarks/operators.py` has written of timm, torchvision and transformers."""
    listed = json.loads((Path(__file__).parents[1] / "docs/results/operators.json").read_text())
    known = {f"{target.replace('::', '.')}.default" if isinstance(target, str) else str(target) for target in OPERATORS}
    assert len(listed["operators"]) > 120 and listed["networks"] > 150
    assert sorted(set(listed["operators"]) - known) == []


def schema_of(target: object) -> torch._C.FunctionSchema:
    if isinstance(target, str):
        library, name = target.split("::")
        target = getattr(getattr(torch.ops, library), name).default
    return target._schema  # type: ignore[attr-defined, no-any-return]


def only_taken(target: object, rule: object, options: dict[str, None]) -> dict[str, None]:
    """Options that PyTorch passes on: those with a default of None are left out where nobody gives them."""
    return {} if target in (aten.repeat_interleave.self_int,) else dict(options) if takes_options(rule) else {}


def takes_options(rule: object) -> bool:
    kinds = {parameter.kind for parameter in inspect.signature(rule).parameters.values()}  # type: ignore[arg-type]
    return bool(kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.KEYWORD_ONLY})


def test_the_elementwise_family_agrees() -> None:
    """Where channels pass element by element, constants follow, but for flags and steps of any size."""
    family = [
        (name, row) for name, (_, row) in ROWS.items() if row.channel_rule in (elementwise_channels, broadcast_channels)
    ]
    without = {name for name, row in family if isinstance(row.constant_rule, NoRule)}
    flags = {"bitwise_and.Scalar", "bitwise_and.Tensor", "bitwise_not.default", "bitwise_or.Scalar",
             "bitwise_or.Tensor", "bitwise_xor.Tensor", "isnan.default", "logical_and.default", "logical_not.default",
             "logical_or.default", "logical_xor.default"}  # fmt: skip
    assert len(family) > 100
    assert without == flags | {"round.decimals", "empty_like.default", "fill.Tensor"}


def call_node(target: object) -> Node:
    """A node that runs `target` on a tensor of the grid's shape."""
    graph = Graph()
    node = graph.add("call_function", target, (graph.add("placeholder", "x"),))
    for each in graph.nodes:
        each.meta["val"] = torch.empty(GRID.shape, dtype=torch.float64, device="meta")
    return node


def arguments_of(target: object) -> tuple[object, ...]:
    name = name_of(target).split(".")[0]
    x = POSITIVE if name in DOMAIN else GRID
    if target == aten.pow.Scalar:
        return 2.5, x
    return (x, *SETTINGS.get(name, ()))


def computed(target: object, arguments: tuple[object, ...]) -> Tensor:
    """What PyTorch computes; dropout in evaluation, and moves to a type or device, change nothing."""
    if OPERATORS[target].constant_rule is pass_value:
        return GRID
    if target in MADE_ANEW:
        return target(*arguments)[:1, :1, :1, :1]  # type: ignore[operator, no-any-return]
    result: Tensor = target(*arguments)  # type: ignore[operator]
    return result


@pytest.mark.parametrize("name", FOLLOWED)
def test_an_elementwise_rule_gives_what_pytorch_computes_and_keeps_what_is_live(name: str) -> None:
    target, row = ROWS[name]
    arguments = arguments_of(target)
    expected = computed(target, arguments)
    value = call_rule(row.constant_rule, name, call_node(target), *arguments)
    known = ~value.isnan()
    assert known.float().mean() > 0.9  # all but constants at a jump
    torch.testing.assert_close(value[known], expected[known], rtol=0, atol=0)
    live = tuple(torch.full_like(GRID, LIVE) if isinstance(argument, Tensor) else argument for argument in arguments)
    assert call_rule(row.constant_rule, name, call_node(target), *live).isnan().all() == (target not in MADE_ANEW)


def test_one_operator_has_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    from nni_sparsevd.graph.operators import elementwise, table

    monkeypatch.setattr(elementwise, "OPERATORS", elementwise.OPERATORS * 2)
    with pytest.raises(ValueError, match=r"aten.relu.default has two rows in the table of operators"):
        table._rows_by_target()


def test_a_call_is_compared_with_the_signature_before_it_is_made() -> None:
    def rule(node: str, x: int) -> int:
        raise TypeError(node)

    with pytest.raises(NotCovered, match="relu is called in a way that its rule does not cover: missing"):
        call_rule(rule, "relu", "node")
    with pytest.raises(TypeError, match=r"^node$"):
        call_rule(rule, "relu", "node", 1)


class Between(nn.Module):
    """An operator between two convolutions, of which the first writes its channel 2 from its bias alone."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.operator = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), operator
        with torch.no_grad():
            self.first.weight[2] = 0
            self.first.bias[2] = 0.3

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operator(self.first(x)))


FOLLOWING: dict[str, Callable[[Tensor], Tensor]] = {
    "log_sigmoid": F.logsigmoid,
    "softsign": F.softsign,
    "softshrink": lambda x: F.softshrink(x, 0.1),
    "hardshrink": lambda x: F.hardshrink(x, 0.1),
    "threshold": lambda x: F.threshold(x, 0.1, -1.0),
    "logit": lambda x: torch.logit(x.sigmoid()),
    "nan_to_num": torch.nan_to_num,
    "round": torch.round,
    "floor": torch.floor,
    "sign": torch.sign,
    "rsub": lambda x: 2 - x,
    "pow": lambda x: 2**x,
    "clamp": lambda x: torch.clamp_min(x, torch.tensor(0.1)),
    "where": lambda x: torch.where(torch.arange(8) > 100, x, x.exp()),
    "masked_fill": lambda x: x.masked_fill(torch.arange(8) > 100, 0.0),
    "unfold": lambda x: F.interpolate(x, size=(5, 5), mode="bicubic"),
    "largest": lambda x: F.adaptive_max_pool2d(x, 2),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_a_constant_is_followed_and_its_channel_removed(name: str) -> None:
    torch.manual_seed(0)
    model = Between(FOLLOWING[name]).double().eval()
    example = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    small, plan = svd.shrink(model, example)
    assert plan.removed == 1 and small.first.weight.shape[0] == 3
    assert svd.check(model, small, example).ok


ZEROS_PASS: dict[str, Callable[[Tensor], Tensor]] = {
    "fold of unfold": lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[-2:], 3, padding=1),
    "fold without overlap": lambda x: F.fold(F.unfold(x, 2, stride=2), x.shape[-2:], 2, stride=2),
    "fold of weighted windows": lambda x: F.fold(F.unfold(x, 3, padding=1).sigmoid() * 0, x.shape[-2:], 3, padding=1),
    "repeat": lambda x: x.repeat(1, 1, 2, 2),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 2),
    "one minus": lambda x: 1 - x.sigmoid(),
}


@pytest.mark.parametrize("name", ZEROS_PASS)
def test_a_channel_of_zeros_is_removed(name: str) -> None:
    model = Between(ZEROS_PASS[name]).double().eval()
    torch.nn.init.zeros_(model.first.bias)
    example = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    small, plan = svd.shrink(model, example)
    assert plan.removed >= 1
    assert svd.check(model, small, example).ok


STOPPING: dict[str, Callable[[Tensor], Tensor]] = {
    "argsort": lambda x: x * x.argsort(-1),
    "round": lambda x: torch.round(x, decimals=2),
}


@pytest.mark.parametrize("name", STOPPING)
def test_an_operator_that_stops_a_constant_is_named(name: str) -> None:
    model = Between(STOPPING[name]).double().eval()
    _, plan = svd.shrink(model, torch.randn(2, 3, 8, 8, dtype=torch.float64))
    group = plan.groups[0]
    assert (plan.removed, group.dead) == (0, 1)
    assert group.reason == f"1 constant, but {name} has no rule for constants"


class Words(nn.Module):
    """A table of words, and a residual branch."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.branch, self.last = nn.Embedding(9, 5), nn.Linear(5, 5), nn.Linear(5, 2)

    def forward(self, words: Tensor) -> Tensor:
        x: Tensor = self.table(words)
        return self.last(x + self.branch(x))


def test_a_column_of_a_table_that_all_words_share_is_removed() -> None:
    torch.manual_seed(0)
    model = Words().eval()
    with torch.no_grad():
        model.table.weight[:, 3] = 0.7
        model.branch.weight[3] = 0
    words = torch.randint(9, (2, 4))
    small, plan = svd.shrink(model, words)
    assert plan.removed == 1 and small.table.embedding_dim == 4
    torch.testing.assert_close(small(words), model(words))
