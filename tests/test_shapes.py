"""Shapes without data: what is computed here is what PyTorch computes, and nothing where PyTorch refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from nni_sparsevd.graph.shapes import make_result

aten = torch.ops.aten


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


IMAGES, TOKENS = meta(2, 6, 9, 8), meta(2, 5, 12)
LAST, GAPS = meta(2, 9, 8, 6).permute(0, 3, 1, 2), meta(2, 5, 24)[..., :12]
SIX, NORM = meta(6), (meta(6), meta(6), meta(6), meta(6))
CALLS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "relu": (aten.relu.default, (IMAGES,)),
    "gelu, channels last": (aten.gelu.default, (LAST,)),
    "in place": (aten.silu_.default, (TOKENS,)),
    "one type": (aten.sigmoid.default, (meta(3, dtype=torch.float64),)),
    "a part of a tensor": (aten.tanh.default, (GAPS,)),
    "every other one": (aten.relu.default, (meta(4, 24)[:, ::2],)),
    "a factor of a part": (aten.mul.Tensor, (GAPS, 2.0)),
    "a product of parts": (aten.mul.Tensor, (GAPS, meta(2, 7, 30)[:, 1:6, 9:21])),
    "a part and a whole": (aten.mul.Tensor, (GAPS, TOKENS)),
    "sum": (aten.add.Tensor, (IMAGES, meta(2, 6, 9, 8))),
    "sum, channels last": (aten.add.Tensor, (LAST, meta(2, 9, 8, 6).permute(0, 3, 1, 2))),
    "a factor for each channel": (aten.mul.Tensor, (LAST, meta(6, 1, 1))),
    "the factor first": (aten.mul.Tensor, (meta(2, 6, 1, 1), IMAGES)),
    "a number": (aten.mul.Tensor, (IMAGES, 0.5)),
    "in place, broadcast": (aten.add_.Tensor, (IMAGES, meta(6, 1, 1))),
    "linear": (aten.linear.default, (TOKENS, meta(7, 12), meta(7))),
    "linear after a transpose": (aten.linear.default, (TOKENS.transpose(0, 1), meta(7, 12))),
    "convolution": (aten.conv2d.default, (IMAGES, meta(4, 3, 3, 2), meta(4), [2, 1], [1, 0], [1, 2], 2)),
    "convolution, channels last": (aten.conv2d.default, (LAST, meta(4, 6, 1, 1), None, [1, 1], [0, 0], [1, 1], 1)),
    "batch norm": (aten.batch_norm.default, (IMAGES, *NORM, False, 0.1, 1e-5, True)),
    "standardized weights": (aten.batch_norm.default, (meta(1, 6, 9), None, None, None, None, True, 0.0, 1e-5, True)),
    "layer norm": (aten.layer_norm.default, (LAST.permute(0, 2, 3, 1), [6], SIX, SIX)),
    "layer norm, channels first": (aten.layer_norm.default, (TOKENS.transpose(1, 2), [5])),
    "softmax": (aten.softmax.int, (TOKENS, -1)),
    "roll": (aten.roll.default, (IMAGES, [-1, 2], [2, 3])),
    "mean": (aten.mean.dim, (IMAGES, [2, -1], True)),
    "mean without the axis": (aten.mean.dim, (TOKENS, [1])),
    "concatenation": (aten.cat.default, ([TOKENS, meta(2, 1, 12)], 1)),
    "attention": (aten.scaled_dot_product_attention.default, (meta(2, 3, 5, 4), meta(2, 3, 5, 4), meta(2, 3, 5, 4))),
}
REFUSED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "another number of channels": (aten.batch_norm.default, (IMAGES, *[meta(5)] * 4, False, 0.1, 1e-5, True)),
    "sizes that do not fit": (aten.add.Tensor, (IMAGES, meta(5, 1, 1))),
    "a weight that does not fit": (aten.linear.default, (TOKENS, meta(7, 11))),
    "a bias that does not fit": (aten.linear.default, (TOKENS, meta(7, 12), meta(6))),
    "a kernel that is too large": (aten.conv2d.default, (IMAGES, meta(4, 6, 11, 11))),
    "a shape that does not fit": (aten.layer_norm.default, (TOKENS, [11])),
    "an axis that is not there": (aten.mean.dim, (TOKENS, [3])),
    "another width": (aten.cat.default, ([TOKENS, meta(2, 1, 11)], 1)),
    "in place, of a larger one": (aten.add_.Tensor, (SIX, IMAGES)),
}
LEFT_TO_PYTORCH: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "a tensor with gaps in another order": (aten.relu.default, (GAPS.transpose(1, 2),)),
    "a part with an axis of size 1": (aten.relu.default, (meta(2, 1, 24)[..., :12],)),
    "whole numbers": (aten.add.Tensor, (meta(3, dtype=torch.int64), 0.5)),
    "two types": (aten.mul.Tensor, (SIX, meta(6, dtype=torch.float64))),
    "groups that do not fit": (aten.conv2d.default, (IMAGES, meta(5, 3, 1, 1), None, [1, 1], [0, 0], [1, 1], 2)),
    "a tensor with data": (aten.add.Tensor, (SIX, torch.ones(6))),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_result_is_what_pytorch_makes(name: str) -> None:
    target, arguments = CALLS[name]
    computed, expected = make_result(target, arguments, {}), target(*arguments)
    assert computed is not None and computed.is_meta
    assert (computed.shape, computed.dtype, computed.stride()) == (expected.shape, expected.dtype, expected.stride())
    assert (computed is arguments[0]) == (expected is arguments[0])


@pytest.mark.parametrize("name", [*REFUSED, *LEFT_TO_PYTORCH])
def test_everything_else_is_left_to_pytorch(name: str) -> None:
    target, arguments = {**REFUSED, **LEFT_TO_PYTORCH}[name]
    assert make_result(target, arguments, {}) is None
    if name in REFUSED:
        with pytest.raises((RuntimeError, IndexError)):
            target(*arguments)
