"""Rules of operators that pool, pad, resize or reduce: which axes keep their channels."""

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from .labels import Equations, IndexIds, TrackedTensor
from .rules import aten, op_name, rule, shape_of


@rule(aten.max_pool2d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool2d.default, aten.max_pool1d.default)
@rule(aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default, aten.max_pool3d.default, aten.avg_pool3d.default)
@rule(aten.adaptive_avg_pool3d.default, aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec)
@rule(aten.upsample_bicubic2d.vec, aten.upsample_linear1d.vec, aten.upsample_trilinear3d.vec)
@rule(aten.upsample_nearest1d.vec, aten.upsample_nearest3d.vec, aten.adaptive_max_pool2d.default)
def spatial(eq: Equations, node: Node, x: TrackedTensor, *settings: Any, **options: Any) -> TrackedTensor:
    shape = shape_of(node)
    for dim, atoms in enumerate(x.atoms):
        if shape[dim] != x.shape[dim]:
            eq.pin(atoms, "resized axis")
    return TrackedTensor(shape, tuple(a if shape[d] == x.shape[d] else None for d, a in enumerate(x.atoms)))


@rule(aten.pad.default, aten.constant_pad_nd.default)
def pad(eq: Equations, node: Node, x: TrackedTensor, *settings: Any, **options: Any) -> TrackedTensor:
    return spatial(eq, node, x)


@rule(aten.linalg_vector_norm.default)
def norm(
    eq: Equations, node: Node, x: TrackedTensor, order: float, dims: Sequence[int] | None = None, keepdim: bool = False,
    **options: Any,
) -> TrackedTensor:  # fmt: skip
    return reduction(eq, node, x, dims, keepdim)


@rule(aten.max.dim, aten.min.dim)
def extremum(eq: Equations, node: Node, x: TrackedTensor, dim: int, keepdim: bool = False) -> list[TrackedTensor]:
    return [
        TrackedTensor(tuple(v.shape), _reduced(eq, node, x, {dim % len(x.shape)}, keepdim)) for v in node.meta["val"]
    ]


@rule(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.var.correction)
@rule(aten.logsumexp.default)
def reduction(
    eq: Equations, node: Node, x: TrackedTensor, dims: Sequence[int] | None, keepdim: bool = False, **options: Any
) -> TrackedTensor:
    reduced = {dim % len(x.shape) for dim in dims} if dims else set(range(len(x.shape)))
    return TrackedTensor(shape_of(node), _reduced(eq, node, x, reduced, keepdim or bool(options.get("keepdim"))))


def _reduced(
    eq: Equations, node: Node, x: TrackedTensor, reduced: set[int], keepdim: bool
) -> tuple[IndexIds | None, ...]:
    for dim in reduced:
        eq.pin(x.at(dim), f"{op_name(node)} over the channels")
    kept = [None if dim in reduced else atoms for dim, atoms in enumerate(x.atoms) if keepdim or dim not in reduced]
    return tuple(kept)
