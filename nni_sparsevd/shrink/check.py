"""Do two networks compute the same function?  Measured on random inputs, in float64 and float32."""

import copy
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from ..graph import Inputs, as_tuple

TOLERANCE_64 = 1e-10
TOLERANCE_32 = 1e-5
TOLERANCE_STORED = 1e-6
"""In float64, for networks stored in float32: a folded bias was rounded once when it was stored."""
BATCHES = (1, 3)


@dataclass(frozen=True)
class CheckResult:
    """Largest differences over all random inputs; relative ones to the largest output."""

    max_abs_64: float
    max_rel_64: float
    max_abs_32: float
    max_rel_32: float
    inputs: int
    """Random batches compared in each precision."""
    stored_in_64: bool
    """Whether both networks hold float64 parameters, so that nothing was rounded when it was stored."""

    @property
    def ok(self) -> bool:
        """Equal to rounding."""
        wide = TOLERANCE_64 if self.stored_in_64 else TOLERANCE_STORED
        return self.max_rel_64 <= wide and self.max_rel_32 <= TOLERANCE_32

    def to_dict(self) -> dict[str, object]:
        """JSON-able, with the verdict."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        verdict = "equal to rounding" if self.ok else "DIFFERENT"
        return (
            f"{verdict}: largest difference {self.max_abs_64:.2g} (relative {self.max_rel_64:.2g}) in float64, "
            f"{self.max_abs_32:.2g} (relative {self.max_rel_32:.2g}) in float32, {self.inputs} random batches each"
        )


def check(model: nn.Module, small: nn.Module, example_inputs: Inputs, rounds: int = 3, seed: int = 0) -> CheckResult:
    """Compare two networks in evaluation mode on random inputs of the shapes of `example_inputs`, several batch sizes.

    Integer inputs are drawn from the values of the example.  Both models are left as they were.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = [_random(as_tuple(example_inputs), size, generator) for _ in range(rounds) for size in BATCHES]
    wide = _differences(model, small, batches, torch.float64)
    narrow = _differences(model, small, batches, torch.float32)
    parameters = [*model.parameters(), *small.parameters()]
    return CheckResult(*wide, *narrow, len(batches), all(p.dtype == torch.float64 for p in parameters))


def _random(example: tuple[Tensor, ...], batch: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    drawn = []
    for value in example:
        shape = (batch, *value.shape[1:])
        if value.is_floating_point():
            drawn.append(torch.randn(shape, generator=generator, dtype=torch.float64))
        else:
            picks = torch.randint(value.numel(), shape, generator=generator)
            drawn.append(value.detach().cpu().flatten()[picks])
    return tuple(drawn)


def _differences(
    model: nn.Module, small: nn.Module, batches: list[tuple[Tensor, ...]], dtype: torch.dtype
) -> tuple[float, float]:
    first, second = (copy.deepcopy(one).cpu().to(dtype).eval() for one in (model, small))
    absolute = largest = 0.0
    with torch.no_grad():
        for batch in batches:
            inputs = [value.to(dtype) if value.is_floating_point() else value for value in batch]
            for left, right in zip(_tensors(first(*inputs)), _tensors(second(*inputs)), strict=True):
                if left.shape != right.shape or not (left.isfinite().all() and right.isfinite().all()):
                    return float("inf"), float("inf")
                absolute = max(absolute, (left - right).abs().max().item())
                largest = max(largest, left.abs().max().item())
    return absolute, absolute / largest if largest else absolute


def _tensors(output: object) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, dict) else output
    return [tensor for value in values for tensor in _tensors(value)]  # type: ignore[attr-defined]
