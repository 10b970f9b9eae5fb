"""The recipe: the settings of all sections together, and the checks of one section against another."""

import math
from typing import Literal

from pydantic import PositiveFloat, model_validator

from ..posterior import DEFAULT_THRESHOLD, REASONS_AGAINST_EVIDENCE
from ..settings import MaskSettings, PosteriorSettings, Settings
from .budget import BudgetSettings
from .data import DataSettings
from .model import ModelSettings, TeacherSettings
from .stages import FinetuneStage, QuantizeStage, SparseStage, Stage


class Recipe(Settings):
    """Everything that `nni-sparsevd compress` does, in one file."""

    model: ModelSettings = ModelSettings()
    """Which network."""
    data: DataSettings = DataSettings()
    """Which data."""
    posterior: PosteriorSettings = PosteriorSettings()
    """What is learned."""
    dense: Stage = Stage()
    """Ordinary training before Sparse VD."""
    sparse: SparseStage = SparseStage()
    """Sparse VD."""
    finetune: FinetuneStage = FinetuneStage()
    """Training of the weights that are left, with fixed masks."""
    quantize: QuantizeStage = QuantizeStage()
    """Training for integers of eight bits."""
    teacher: TeacherSettings = TeacherSettings()
    """Distillation."""
    budget: BudgetSettings = BudgetSettings()
    """What the network may cost, instead of a threshold."""
    masks: MaskSettings = MaskSettings()
    """The decision."""
    twin: bool = False
    """Train the dense network on for as long as the stages after the dense one take, at the end and with the same
    settings: a dense twin, against which the report says what the smaller network loses."""
    seed: int = 0
    """Seed of weights, noise, data order and hold-out."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision; the KL stays in float32."""
    shard: bool = False
    """Split weights, gradients and the state of the optimizer among several processes (FSDP2), instead of giving each
    process all of them."""
    compile: str | None = None
    """Backend of `torch.compile` for the training steps, e.g. inductor, which needs a C++ compiler. A stage in which
    channels leave the network (`budget`, `sparse.shrink_at`) is not compiled. Not set: nothing is."""
    channels_last: bool = False
    """Lay training images out channels last: convolutions and pooling are then faster, most of all on a CPU."""
    checkpoint_minutes: PositiveFloat = 5.0
    """Minutes between checkpoints within an epoch; one is also written at the end of every epoch."""

    @model_validator(mode="before")
    @classmethod
    def _give_gates_to_a_budget(cls, values: object) -> object:
        """A budget counts whole channels, so the posteriors are gates where nothing else is asked for."""
        if not isinstance(values, dict):
            return values
        budget, posterior = values.get("budget"), values.get("posterior", {})
        if isinstance(budget, dict):
            budget = BudgetSettings.model_validate(budget)
        if budget is None or budget.kind is None:
            return values
        if isinstance(posterior, PosteriorSettings):
            posterior = posterior.model_dump(exclude_unset=True)
        return {**values, "posterior": {"granularity": "gate", **posterior}}

    @property
    def stages(self) -> dict[str, Stage]:
        """The stages by name, in the order in which they are trained; fine-tuning as the largest level has it."""
        tuning = self.finetune.of_level(0)
        return {"dense": self.dense, "sparse": self.sparse, "finetune": tuning, "quantize": self.quantize}

    @property
    def changes_sizes(self) -> bool:
        """Whether channels leave the network while it trains."""
        return self.sparse.shrink_at is not None or self.budget.kind is not None

    def changes_sizes_by(self, stage: str) -> bool:
        """Whether the network may have other sizes at the end of a stage than the recipe gives it."""
        return self.changes_sizes and stage.startswith(("sparse", "finetune", "quantize"))

    @property
    def resolved_threshold(self) -> float | Literal["held_out", "evidence"]:
        """The threshold of the decision: that of the masks where it is set, else that of the posterior.

        Infinity with a budget: what it leaves in multiples of `budget.round_to` stays.
        """
        if self.budget.kind is not None:
            return math.inf
        return self.posterior.threshold if self.masks.threshold is None else self.masks.threshold

    @model_validator(mode="after")
    def _check_tuning_of_levels(self) -> "Recipe":
        levels = self.budget.levels or (1.0,)
        for key in ("epochs", "learning_rate"):
            values = getattr(self.finetune, key)
            if isinstance(values, tuple) and len(values) != len(levels):
                raise ValueError(
                    f"finetune.{key} = {list(values)}: give one value for all levels, or one for each of them, from "
                    f"large to small; there {'is 1' if len(levels) == 1 else f'are {len(levels)}'}"
                )
            if isinstance(values, tuple) and not self.budget.is_from_large_to_small:
                raise ValueError(
                    f"finetune.{key} = {list(values)} is from the largest level to the smallest: write "
                    f"budget.{self.budget.kind} = {list(levels)} in that order, too"
                )
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> "Recipe":
        if not self.shard:
            return self
        for name, stage in self.stages.items():
            if stage.ema is not None:
                raise ValueError(f"{name}.ema does not go together with shard: the average is one of whole networks")
        if self.quantize.aware:
            raise ValueError("quantize.aware does not go together with shard: processes would round differently")
        if self.compile is not None:
            raise ValueError("compile does not go together with shard")
        if self.precision == "fp16":
            raise ValueError(
                "shard with precision = 'fp16': the loss scaler of fp16 needs whole gradients; take 'bf16' or 'no'"
            )
        return self

    @model_validator(mode="after")
    def _refuse_averages_of_changing_sizes(self) -> "Recipe":
        if self.sparse.ema is not None and self.changes_sizes:
            other = "sparse.shrink_at" if self.budget.kind is None else f"budget.{self.budget.kind}"
            raise ValueError(f"sparse.ema does not go together with {other}: the sizes of the network change")
        return self

    @model_validator(mode="after")
    def _refuse_blocks_of_gates(self) -> "Recipe":
        if self.posterior.granularity == "gate" and self.masks.structure == "n:m":
            raise ValueError(
                "masks.structure = 'n:m' decides about weights, and posterior.granularity = 'gate' learns about "
                "channels alone: take 'weight' or 'both'"
            )
        return self

    @model_validator(mode="after")
    def _refuse_priors_without_evidence(self) -> "Recipe":
        prior = self.posterior.prior
        uses_prior = self.posterior.granularity != "gate" or self.posterior.gate == "gaussian"
        if self.masks.threshold == "evidence" and uses_prior and prior in REASONS_AGAINST_EVIDENCE:
            raise ValueError(
                f"masks.threshold = 'evidence' cannot decide with posterior.prior = {prior!r}: "
                f"{REASONS_AGAINST_EVIDENCE[prior]}; give a number, or take posterior.prior = 'log_uniform'"
            )
        return self

    @model_validator(mode="after")
    def _check_shrinking_while_training(self) -> "Recipe":
        shrink_at, threshold = self.sparse.shrink_at, self.resolved_threshold
        if shrink_at is None:
            return self
        if isinstance(threshold, float) and shrink_at < threshold:
            raise ValueError(
                f"sparse.shrink_at = {shrink_at:g} removes channels that the threshold, {threshold:g}, would keep"
            )
        if self.masks.ratio is not None:
            raise ValueError(
                "sparse.shrink_at does not go together with masks.ratio: the ratio would be one of what is left"
            )
        if self.masks.remember_norms:
            raise ValueError(
                "sparse.shrink_at does not go together with masks.remember_norms: norms remember at the end"
            )
        if self.shard or self.sparse.snapshots:
            other = "shard" if self.shard else "sparse.snapshots"
            raise ValueError(f"sparse.shrink_at does not go together with {other}: the sizes of the network change")
        return self

    @model_validator(mode="after")
    def _check_budget(self) -> "Recipe":
        if self.budget.kind is None:
            return self
        conflicts = {
            f"posterior.granularity = '{self.posterior.granularity}'": self.posterior.granularity != "gate",
            f"posterior.gate = '{self.posterior.gate}'": self.posterior.gate != "gaussian",
            "sparse.shrink_at": self.sparse.shrink_at is not None,
            f"posterior.threshold = {self.posterior.threshold:g}": self.posterior.threshold != DEFAULT_THRESHOLD,
            "masks.ratio": self.masks.ratio is not None,
            "masks.threshold": self.masks.threshold is not None,
            "masks.remember_norms": self.masks.remember_norms,
            "sparse.epochs = 0": self.sparse.epochs == 0,
            "sparse.kl_coefficient = 0": self.sparse.kl_coefficient == 0,
            "sparse.snapshots": bool(self.sparse.snapshots),
            "shard": self.shard,
            "precision = 'fp16'": self.precision == "fp16",
        }
        refused = [setting for setting, conflict in conflicts.items() if conflict]
        if refused:
            raise ValueError(
                f"budget.{self.budget.kind} removes whole channels while gates learn: it does not go together with "
                f"{', '.join(refused)}"
            )
        return self

    @model_validator(mode="after")
    def _check_variational_finetuning(self) -> "Recipe":
        # Fine-tuning removes the noise of single weights, so each weight needs a variance of its own.
        if self.finetune.variational and self.posterior.variance == "channel":
            raise ValueError(
                "finetune.variational removes the noise of single weights: it needs posterior.variance = 'weight'"
            )
        return self
