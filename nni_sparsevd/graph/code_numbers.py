"""The numbers that the code of a network computes with, as opposed to sizes and positions."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .nodes import Node

aten = torch.ops.aten

NUMBER_OPERATORS = {
    *(getattr(aten, name).Tensor for name in ("add", "sub", "mul", "div", "remainder")),
    *(getattr(aten, name).Scalar for name in ("add", "sub", "mul", "div", "rsub", "pow", "remainder")),
    aten.div.Tensor_mode, aten.floor_divide.default,
    aten.pow.Tensor_Scalar, aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default,
    aten.masked_fill.Scalar, aten.scaled_dot_product_attention.default, aten.lift_fresh_copy.default,
    aten.full.default, aten.full_like.default, aten.new_full.default, aten.fill.Scalar, aten.scalar_tensor.default,
}  # fmt: skip
"""Operators that compute with the numbers in their arguments; other operators take numbers as sizes and positions."""
PADDINGS = (aten.pad.default, aten.constant_pad_nd.default)
"""Operators whose first setting says how many positions, or channels, are added."""
NUMBERS_OF_A_TENSOR = 8
"""The most numbers in a tensor that counts as made by the code from single ones, such as a height and a width."""


def find_numbers(node: Node) -> list[float]:
    """The numbers that an operator computes with, or those of a small tensor that the code makes of numbers."""
    if node.op == "get_attr":
        return _read_small_tensor(node.meta.get("constant"))
    if node.target in PADDINGS:
        widths: Any = node.args[1]
        return [float(width) for width in widths]
    if node.target not in NUMBER_OPERATORS:
        return []
    start = 1 if node.target in (aten.full.default, aten.new_full.default) else 0  # sizes come first, or after x
    arguments = [argument for argument in node.args[start:] if not isinstance(argument, list | tuple)]
    numbers = []
    for leaf in tree_leaves((arguments, node.kwargs)):
        if isinstance(leaf, int | float) and not isinstance(leaf, bool):
            numbers.append(float(leaf))
    return numbers


def _read_small_tensor(constant: Tensor | None) -> list[float]:
    """The numbers of a tensor such as `torch.tensor(width)`; none where it is large, without data, or holds NaN."""
    if constant is None or constant.is_meta or constant.numel() > NUMBERS_OF_A_TENSOR or constant.is_complex():
        return []
    return [] if bool(constant.isnan().any()) else [float(number) for number in constant.flatten()]
