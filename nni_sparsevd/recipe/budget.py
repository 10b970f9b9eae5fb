"""Settings of the budget: what the network may cost at the end, at one level or at several."""

from typing import Annotated, Literal

from annotated_types import Gt, Le, Lt
from pydantic import PositiveInt, model_validator

from ..settings import Fraction, Settings

BudgetKind = Literal["macs", "parameters", "latency"]
"""What a network costs."""
Part = Annotated[float, Gt(0), Lt(1)]
"""A part of a whole, neither nothing nor all of it."""
LADDER = (0.7, 0.5, 0.35, 0.25, 0.18, 0.125, 0.09)
"""Levels that are tried where only a tolerance is set: each takes about three tenths of what the one before left."""
ALLOWED_LOSS = 0.01
"""Held-out accuracy that the network of a run may lose where no tolerance is set."""


class BudgetSettings(Settings):
    """What the network may cost at the end of the sparse stage. Channels leave it for good, a few at a time."""

    macs: Part | tuple[Part, ...] | None = None
    """The part of the dense network's multiply-accumulates that is left; several parts, e.g. [0.5,0.25], give a network
    each."""
    parameters: Part | tuple[Part, ...] | None = None
    """The part of the dense network's weights that is left, or several parts."""
    latency: Part | tuple[Part, ...] | None = None
    """The part of the dense network's time for one image that is left, measured on one thread, or several parts."""
    runtime: Literal["onnxruntime", "executorch", "litert", "pytorch"] = "onnxruntime"
    """Where `latency` is measured."""
    precision: Literal["float32", "int8"] = "float32"
    """What `latency` is measured in: the dense network and the smaller ones both have it."""
    tolerance: Fraction | None = None
    """Held-out accuracy that the network of the run may lose against the best of the run: the dense one, its twin, or a
    larger level; not set: 0.01. Where only this is set, levels of multiply-accumulates are tried, ever smaller ones,
    until one loses more."""
    round_to: PositiveInt = 8
    """What is left of a group of channels is a multiple of this: runtimes compute 25 channels no faster than 32. ONNX
    Runtime on a processor with AVX-512 wants 16."""
    reached_at: Annotated[float, Gt(0), Le(1)] = 0.65
    """Part of a level's steps in the sparse stage after which it is reached; in the rest the network heals."""
    cuts: PositiveInt = 24
    """How often channels are removed on the way to each level, where there are steps enough."""

    @property
    def kind(self) -> BudgetKind | None:
        """What is counted; None without a budget."""
        if self.searches:
            return "macs"
        kinds: tuple[BudgetKind, ...] = ("macs", "parameters", "latency")
        return next((kind for kind in kinds if getattr(self, kind) is not None), None)

    @property
    def searches(self) -> bool:
        """Whether the levels are only tried, to find the smallest that is accurate enough."""
        return self.tolerance is not None and self.macs is self.parameters is self.latency is None

    @property
    def allowed_loss(self) -> float:
        """Held-out accuracy that the network of the run may lose against the best of the run."""
        return ALLOWED_LOSS if self.tolerance is None else self.tolerance

    @property
    def levels(self) -> tuple[float, ...]:
        """The parts of the cost that are left, from large to small; empty without a budget."""
        return tuple(sorted(self._parts, reverse=True))

    @property
    def is_from_large_to_small(self) -> bool:
        """Whether the levels are written in the order in which they are reached."""
        return self._parts == self.levels

    @property
    def _parts(self) -> tuple[float, ...]:
        """The parts of the cost that are left, as they are written."""
        if self.searches:
            return LADDER
        if self.kind is None:
            return ()
        parts: float | tuple[float, ...] = getattr(self, self.kind)
        return parts if isinstance(parts, tuple) else (parts,)

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "BudgetSettings":
        budgets = [f"budget.{kind}" for kind in ("macs", "parameters", "latency") if getattr(self, kind) is not None]
        if len(budgets) > 1:
            raise ValueError(f"{' and '.join(budgets)}: set one of them")
        if self.precision == "int8" and self.latency is None:
            raise ValueError("budget.precision = 'int8' is for budget.latency, which is not set")
        if self.precision == "int8" and self.runtime == "pytorch":
            raise ValueError("budget.precision = 'int8' and budget.runtime = 'pytorch': PyTorch has no int8 here")
        if self.kind is None:
            return self
        # Folders and stages are called by the level as it is written with six digits.
        if not self.levels or len({f"{part:g}" for part in self.levels}) < len(self.levels):
            raise ValueError(f"budget.{self.kind}: give one part or several different ones, found {list(self.levels)}")
        return self
