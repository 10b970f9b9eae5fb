"""Settings of the stages: how the network is optimized in each of them."""

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ..settings import Fraction, Settings

Number = TypeVar("Number", int, float)


class Optimization(Settings):
    """How a network is optimized, or how several are that differ in length and rate."""

    epochs: NonNegativeInt | tuple[NonNegativeInt, ...] = 0
    """Length; 0 skips the stage. With several levels of a budget, one for all of them or one for each, from large to
    small, e.g. [8,24]."""
    optimizer: str = "adam"
    """Any name that `timm.optim` knows."""
    learning_rate: PositiveFloat | tuple[PositiveFloat, ...] = 1e-3
    """Peak rate, for all levels or for each."""
    weight_decay: NonNegativeFloat = 0.0
    """Decay of the weights; variances of the posterior and gates never decay."""
    warmup: Fraction = 0.0
    """Part of the stage in which the rate rises linearly from a hundredth of the peak."""
    hold: Fraction = 0.0
    """Part of the stage at the peak rate, the warm-up included; after it the rate falls to 0."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the rate falls to 0: linearly, or as half a cosine."""
    layer_decay: Annotated[float, Gt(0), Lt(1)] | None = None
    """Learning rate of each layer, as a multiple of that of the layer behind it, in timm's order of layers; the last
    layer has `learning_rate`. Not set: all layers have it."""
    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient of all parameters together; a longer one is scaled down. Not set: any length."""
    accumulate: PositiveInt = 1
    """Batches whose gradients are averaged for one step: a step sees that many times `data.batch_size` images."""
    ema: Annotated[float, Gt(0), Lt(1)] | None = None
    """Decay of a moving average of the network over the steps (timm's ModelEmaV3, warmed up). The average is what is
    validated, and what the stage ends with. Not set: the last weights."""


class Stage(Optimization):
    """One stretch of optimization."""

    epochs: NonNegativeInt = 0
    """Length; 0 skips the stage."""
    learning_rate: PositiveFloat = 1e-3
    """Peak rate."""


class SparseStage(Stage):
    """The variational stage: mean loss + kl_coefficient * KL / N."""

    epochs: NonNegativeInt = 20
    """Length; 0 skips the stage."""
    kl_coefficient: NonNegativeFloat = 1.0
    """Weight of the KL in units of 1/N; 1 is the evidence lower bound."""
    warmup_from: NonNegativeFloat = 0.0
    """Epoch until which the KL has weight 0."""
    warmup_to: NonNegativeFloat = 0.0
    """Epoch from which the KL has its full weight; between the two the weight rises linearly. From scratch, without
    warm-up, everything is removed at once."""
    gate_rate: PositiveFloat = 10.0
    """Learning rate of gates, as a multiple of that of the weights."""
    shrink_at: NonNegativeFloat | None = None
    """Log alpha from which channels leave the network while it trains, after every epoch: steps get cheaper, and what
    was removed cannot come back. Not set: all channels stay until the end."""
    checkpoint: Path | None = None
    """Start from this posterior.safetensors of another run with the same network and posterior: to train on, or, with
    0 epochs, to decide and fine-tune again."""
    snapshots: tuple[str, ...] = ()
    """Layers whose weights, as they would ship, are written after every epoch, for animations."""

    @model_validator(mode="after")
    def _refuse_a_warmup_that_ends_before_it_begins(self) -> "SparseStage":
        if self.warmup_from > self.warmup_to:
            raise ValueError(
                f"sparse.warmup_from = {self.warmup_from:g} is after sparse.warmup_to = {self.warmup_to:g}, from which "
                "the KL has its full weight: set sparse.warmup_to, too"
            )
        return self


class FinetuneStage(Optimization):
    """The stage after the decision: what is removed stays zero.

    Example:
        ```python
        from nni_sparsevd.recipe import FinetuneStage

        tuning = FinetuneStage(epochs=(8, 24), learning_rate=(3e-4, 1e-3), weight_decay=0.01)
        small = tuning.of_level(1)
        assert (small.epochs, small.learning_rate, small.weight_decay) == (24, 1e-3, 0.01)
        ```
    """

    variational: bool = False
    """Keep the posteriors of the weights that are left: their noise, and their KL at the full weight of the sparse
    stage. Gates learn at the `gate_rate` of that stage."""

    def of_level(self, place: int) -> Stage:
        """The stage of one level.

        Args:
            place: Place of the level among those of the budget, from large to small; 0 where there is one network.
        """
        return self._make_stage(_of_level(self.epochs, place), _of_level(self.learning_rate, place))

    def of_twin(self) -> Stage:
        """The stage of the dense twin: as long as the longest, at the rate of the largest level, the nearest to it."""
        longest = max(self.epochs) if isinstance(self.epochs, tuple) else self.epochs
        return self._make_stage(longest, _of_level(self.learning_rate, 0))

    def _make_stage(self, epochs: int, learning_rate: float) -> Stage:
        others = self.model_dump(include=set(Stage.model_fields) - {"epochs", "learning_rate"})
        return Stage(epochs=epochs, learning_rate=learning_rate, **others)


class QuantizeStage(Stage):
    """The stage after fine-tuning: the network learns to bear the rounding of `export --int8`."""

    aware: bool = False
    """Train on with fake integers of eight bits: weights and activations are rounded as a runtime rounds them. The
    network of the run stays one of floats, and `export --int8` makes the integers. The stage computes in float32, and
    is not compiled."""
    epochs: NonNegativeInt = 5
    """Length."""
    learning_rate: PositiveFloat = 1e-4
    """Peak rate."""
    teacher_weight: Annotated[float, Ge(0), Le(1)] = 0.5
    """Part of the loss that the teacher has in this stage. Where the other stages have no teacher, the run's dense
    network is the teacher."""

    @model_validator(mode="after")
    def _refuse_what_does_nothing(self) -> "QuantizeStage":
        if self.aware and not self.epochs:
            raise ValueError("quantize.aware = true with quantize.epochs = 0 trains nothing: take at least one epoch")
        if not self.aware:
            fields = type(self).model_fields
            unused = [key for key in fields if getattr(self, key) != fields[key].default]
            if unused:
                raise ValueError(f"quantize.{unused[0]} counts only with quantize.aware = true")
        return self


def _of_level(setting: Number | tuple[Number, ...], place: int) -> Number:
    """The value of one level, of a setting that has one value for all levels or one for each."""
    return setting[place] if isinstance(setting, tuple) else setting
