"""The stages of a run: dense training, sparse training, the decision, fine-tuning. Each can be resumed."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from ..convert import bake_, find_passed_over, sparsify_
from ..data import DataSets
from ..errors import TrainingError
from ..files import load_tensors, save_tensors, write_json
from ..masks import Masks, compute_masks, count_weights, flatten_masks, unflatten_masks
from ..nn import Variational
from ..recipe import SparseStage, Stage
from ..regularize import use_cutoffs_
from .batches import Batches
from .checkpoint import Checkpoint
from .gradual_removal import GradualRemoval
from .levels import Level, TunedLevel, account_levels, choose_level, list_levels, list_stages, read_account
from .log_alpha_history import LogAlphaHistory
from .loop import train_stage
from .masked_posterior import mask_posterior_
from .network_files import read_network_, write_network
from .recorded_latency import LATENCY_FILE, MeasurePart, RecordedLatency
from .run import Run
from .scoring import evaluate, evaluate_baked
from .sensitivity import SENSITIVITY_FILE, measure_sensitivities
from .starting_network import make_variational_
from .teacher import Teacher
from .threshold import choose_threshold
from .twin import list_twin_stages


@dataclass(frozen=True)
class Compressed:
    """What training leaves.

    Attributes:
        dense: The network before Sparse VD, ordinary.
        levels: The networks after fine-tuning, from large to small: several where the budget has several levels.
        chosen: The one of them that is the network of the run.
        dense_held_out: Accuracy of the dense network on held-out images, or that of its twin where there is one.
        data: The data of the run.
        example_inputs: Two normalized training images, shape (2, channels, height, width).
        passed_over: Weights and channel groups that had no posterior -> the reason.
        missed: Which levels of the budget were missed by more than 5 %, and why, or that no network is within the
            tolerance; empty where nothing was missed.
        twin: The dense network, trained on for as long as the run; None where the recipe asks for none.
    """

    dense: nn.Module
    levels: tuple[TunedLevel, ...]
    chosen: TunedLevel
    dense_held_out: float
    data: DataSets
    example_inputs: Tensor
    passed_over: dict[str, str]
    missed: str = ""
    twin: nn.Module | None = None

    @property
    def masked(self) -> nn.Module:
        """The network of the run after fine-tuning, ordinary, with zeros where the masks remove."""
        return self.chosen.masked

    @property
    def masks(self) -> Masks:
        """The decision about the network of the run."""
        return self.chosen.masks


@final
class StageSequence:
    """Trains the stages in order, and decides what is removed. Stages before the checkpoint are not trained again.

    Between the stages, networks and masks pass through files: a resumed run reads the same ones.
    """

    def __init__(
        self,
        run: Run,
        example_inputs: Tensor,
        start: Checkpoint | None,
        teacher: nn.Module | None = None,
        measure_part: MeasurePart | None = None,
    ) -> None:
        """Prepare to train, from the checkpoint `start` if there is one.

        Args:
            run: The recipe under way.
            example_inputs: Two normalized training images.
            start: Where an interrupted run stood.
            teacher: The network that `recipe.teacher.name` asks for, if it does.
            measure_part: Measures a budget of latency, in parts of the dense network's.
        """
        self._measure_part = measure_part
        self.run, self._recipe, self._folder, self._data = run, run.recipe, run.folder, run.data
        self._example_inputs, self._start = example_inputs, start
        self._stages = list_stages(run.recipe)
        self._levels = list_levels(run.recipe, run.folder)
        self._reached = -1 if start is None else self._stages.index(start.place.stage)
        """Index of the stage of the checkpoint."""
        self._teacher = None if teacher is None else self._make_teacher(teacher)
        # All processes hold the same networks: one of them writes for all.
        self._is_main = run.accelerator.is_main_process

    def train(self, model: nn.Module) -> Compressed:
        """Train all stages that are left; `model` is the network of the recipe as it was created."""
        plain = copy.deepcopy(model)
        # Counted before anything is removed: compression is relative to the dense network.
        self._total = count_weights(model, {})[1]
        dense = self._train_dense(model)
        if self._reached <= self._stages.index("sparse"):
            with self.run.metrics.show_phase("tracing"):
                make_variational_(model, self._example_inputs, self._recipe)
            self._train_sparse(model, dense)
            with self.run.metrics.show_phase("deciding"):
                self._decide_levels(plain, dense)
        before = evaluate(dense, self._data, self._data.holdout).accuracy
        tuned = self._finish_levels(plain, before)
        twin = self._train_twin(copy.deepcopy(dense)) if self._recipe.twin else None
        dense_held_out = before if twin is None else evaluate(twin, self._data, self._data.holdout).accuracy
        chosen = choose_level(tuned, dense_held_out, self._recipe.budget.allowed_loss)
        return Compressed(
            dense,
            tuned,
            chosen,
            dense_held_out,
            self._data,
            self._example_inputs,
            find_passed_over(dense, self._recipe.posterior, example_inputs=self._example_inputs),
            self._describe_missed(chosen, dense_held_out),
            twin,
        )

    def _find_start(self, stage: str) -> Checkpoint | None:
        """The checkpoint, where it is one of this stage."""
        return self._start if self._reached == self._stages.index(stage) else None

    def _write(self, model: nn.Module, name: str, stage: str, folder: Path | None = None) -> None:
        """Write a network as a stage has left it, into the run folder or that of a level."""
        if self._is_main:
            path = (folder or self._folder) / f"{name}.safetensors"
            write_network(model, path, resized=self._recipe.changes_sizes_by(stage))
        # The other processes may read the file at once.
        self.run.accelerator.wait_for_everyone()

    def _train_dense(self, model: nn.Module) -> nn.Module:
        """Train `model` without posteriors, or read it back; returns a copy."""
        if self._reached > self._stages.index("dense"):
            read_network_(model, self._folder / "dense.safetensors")
        else:
            if self._recipe.dense.epochs:
                train_stage(
                    self.run,
                    "dense",
                    model,
                    self._recipe.dense,
                    lambda _: self._score(model, {}),
                    teacher=self._teacher,
                    start=self._find_start("dense"),
                )
            self._write(model, "dense", "dense")
        dense = copy.deepcopy(model).cpu().eval()
        if self._teacher is None and self._recipe.teacher.weight:
            self._teacher = self._make_teacher(dense)
        return dense

    def _make_teacher(self, network: nn.Module) -> Teacher:
        return Teacher(network, self._recipe.teacher, self.run.accelerator.device)

    def _train_sparse(self, model: nn.Module, dense: nn.Module) -> None:
        """Train a variational network, and write its posterior."""
        recipe = self._recipe
        removal = self._plan_removal(dense)
        resumes = self._reached == self._stages.index("sparse")
        history = LogAlphaHistory(self._folder / "log_alpha.json", resume=resumes)
        threshold = recipe.resolved_threshold
        # A held-out threshold is chosen after the last epoch; until then that of the layers counts.
        settings = recipe.masks.model_copy(update={"threshold": None if threshold == "held_out" else threshold})

        def end_epoch(epoch: int) -> dict[str, float]:
            history.record(epoch, model, write=self._is_main)
            row = self._score(model, compute_masks(model, settings, example_inputs=self._example_inputs))
            self._refuse_collapse(row, epoch)
            if self._is_main and recipe.sparse.snapshots:
                weights = _collect_shipped_weights(model, recipe.sparse.snapshots)
                save_tensors(weights, self._folder / "snapshots" / f"{epoch:04}.safetensors")
            return row

        train_stage(
            self.run,
            "sparse",
            model,
            recipe.sparse,
            end_epoch,
            teacher=self._teacher,
            removal=removal,
            start=self._find_start("sparse"),
        )
        self._write(model, "posterior", "sparse", self._levels[-1].folder)

    def _plan_removal(self, dense: nn.Module) -> GradualRemoval | None:
        """What removes channels on the way to the budget, if there is one."""
        recipe = self._recipe
        if recipe.budget.kind is None:
            return None
        steps = recipe.sparse.epochs * (Batches(self.run, "sparse").per_epoch // recipe.sparse.accumulate)
        folders = {level.part: level.folder for level in self._levels}

        def write_posterior(part: float, model: nn.Module) -> None:
            self._write(model, "posterior", "sparse", folders[part])

        latency = None
        if self._measure_part is not None:
            record = RecordedLatency(self._measure_part, self._folder / LATENCY_FILE, self.run.accelerator)
            latency = record.measure_at
        return GradualRemoval(recipe.budget, dense, self._example_inputs, steps, write_posterior, latency)

    def _score(self, model: nn.Module, masks: Masks) -> dict[str, float]:
        """How good what would ship is on held-out images, and how small."""
        kept = count_weights(model, masks)[0]
        score = evaluate_baked(model, masks, self._data, self._data.holdout)
        return {
            "accuracy": score.accuracy,
            "held_out_loss": score.loss,
            "sparsity": 1 - kept / self._total,
            "compression": self._total / max(kept, 1),
        }

    def _refuse_collapse(self, row: dict[str, float], epoch: int) -> None:
        """Refuse a network of next to no weights that is no better than a constant.

        The KL has won before the data had a say, and no later epoch brings back what is removed.
        """
        labels = self._data.holdout.labels
        chance = float(labels.bincount().max()) / max(len(labels), 1)
        collapsed = row["sparsity"] > 0.99 and row["accuracy"] <= 1.05 * chance
        if collapsed and not self._recipe.masks.allow_empty:
            raise TrainingError(
                f"collapse in epoch {epoch}: {100 * row['sparsity']:.2f} % of the weights are removed and the network "
                f"is no better than a constant ({100 * row['accuracy']:.1f} %). The KL was at full weight before the "
                "weights had learned anything: warm it up (sparse.warmup_from, sparse.warmup_to), begin with dense "
                "training (dense.epochs), or lower sparse.kl_coefficient. If the labels are random, this is the "
                "right answer: set masks.allow_empty"
            )

    # The levels.

    def _decide_levels(self, plain: nn.Module, dense: nn.Module) -> None:
        """Decide what is removed from the network of each level, and write masks, masked networks and the account."""
        baked = {}
        for level in self._levels:
            model = sparsify_(copy.deepcopy(plain), self._recipe.posterior, example_inputs=self._example_inputs)
            read_network_(model, level.folder / "posterior.safetensors")
            if level.part is not None:
                # What the budget has left in multiples stays.
                use_cutoffs_(model, {})
            if self._is_main:
                at_rest = level.part is not None
                sensitivities = measure_sensitivities(model, len(self._data.train), at_rest=at_rest)
                rows = [sensitivity.to_dict() for sensitivity in sensitivities]
                write_json(level.folder / SENSITIVITY_FILE, rows)
            masks = self._decide(model, level)
            # A residual branch may be removed altogether; a collapse has been refused before.
            bake_(model, masks, allow_empty=True)
            self._write(model, "baked", "sparse", level.folder)
            if level.part is not None:
                baked[level.part] = model
        if baked and self._is_main:
            account = account_levels(self._recipe.budget, dense, baked, self._example_inputs, self._measure_part)
            account.write(self._folder / "budget.json")
        self.run.accelerator.wait_for_everyone()

    def _decide(self, model: nn.Module, level: Level) -> Masks:
        """Choose the threshold where no budget decides, and write the curve and the masks."""
        recipe, data = self._recipe, self._data
        threshold = recipe.resolved_threshold
        if level.part is None:
            curve = choose_threshold(
                model, threshold, recipe.masks, data, self._example_inputs, dense_weights=self._total
            )
            threshold = curve.chosen
            if self._is_main:
                write_json(level.folder / "curve.json", curve.to_dict())
        settings = recipe.masks.model_copy(update={"threshold": threshold})
        masks = compute_masks(model, settings, example_inputs=self._example_inputs)
        if self._is_main:
            save_tensors(flatten_masks(masks), level.folder / "masks.safetensors")
        self.run.accelerator.wait_for_everyone()
        return masks

    def _train_twin(self, model: nn.Module) -> nn.Module:
        """Train the dense network on, in place, as long as the sparse stage and the fine-tuning took; returns it."""
        for name, stage in list_twin_stages(self._recipe).items():
            # A checkpoint of the later stage holds what the earlier one has learned.
            if self._reached <= self._stages.index(name):
                train_stage(
                    self.run,
                    name,
                    model,
                    stage,
                    lambda _: self._score(model, {}),
                    teacher=self._teacher,
                    start=self._find_start(name),
                )
        self._write(model, "twin", "twin_finetune")
        return model.cpu().eval()

    def _list_met_levels(self) -> tuple[Level, ...]:
        """The levels whose budget is met; all where there is none."""
        if self._recipe.budget.kind is None:
            return self._levels
        account = read_account(self._folder / "budget.json")
        met = tuple(level for level in self._levels if level.part is None or account.is_met(level.part))
        if not met:
            raise TrainingError(account.describe_missed(self._recipe.budget.round_to))
        return met

    def _finish_levels(self, plain: nn.Module, dense_held_out: float) -> tuple[TunedLevel, ...]:
        """Fine-tune the networks, from large to small; with a tolerance alone, until one is out of it."""
        budget = self._recipe.budget
        tuned = []
        for level in self._list_met_levels():
            tuned.append(self._finish_level(plain, level))
            if budget.searches and not tuned[-1].is_within(budget.allowed_loss, dense_held_out):
                break
        return tuple(tuned)

    def _finish_level(self, plain: nn.Module, level: Level) -> TunedLevel:
        """Fine-tune the network of a level, or read it back where that has been done."""
        # Read back even if the run was not interrupted here, so that a resumed run has the same network.
        masks = unflatten_masks(load_tensors(level.folder / "masks.safetensors")[0])
        masked = copy.deepcopy(plain)
        if self._reached > self._stages.index(level.stage):
            read_network_(masked, level.folder / "tuned.safetensors")
        else:
            read_network_(masked, level.folder / "baked.safetensors")
            self._finetune(masked, masks, level)
            bake_(masked.cpu(), masks, allow_empty=True)
            # The checkpoint holds the network of the last stage.
            if level is not self._levels[-1] or self._recipe.twin:
                self._write(masked, "tuned", level.stage, level.folder)
        held_out = evaluate(masked.eval(), self._data, self._data.holdout).accuracy
        return TunedLevel(level, masked, masks, held_out)

    def _describe_missed(self, chosen: TunedLevel, dense_held_out: float) -> str:
        """What the budget asked for and the run did not reach; empty where it reached everything."""
        budget = self._recipe.budget
        if budget.searches:
            if chosen.is_within(budget.allowed_loss, dense_held_out):
                return ""
            return (
                f"budget.tolerance = {budget.allowed_loss:g}: no network is accurate enough; the best of them has "
                f"{100 * chosen.held_out:.2f} % on held-out images, the dense one {100 * dense_held_out:.2f} %. Train "
                "longer (sparse.epochs, finetune.epochs), or allow more. The run folder holds the networks"
            )
        if budget.kind is None:
            return ""
        account = read_account(self._folder / "budget.json")
        return account.describe_missed(budget.round_to) if account.missed else ""

    def _finetune(self, model: nn.Module, masks: Masks, level: Level) -> None:
        """Train what the masks keep, with the noise of its posteriors or without."""
        settings = self._recipe.finetune
        if not settings.epochs:
            return
        stage: Stage = settings
        if settings.variational:
            sparsify_(model, self._recipe.posterior, example_inputs=self._example_inputs)
            read_network_(model, level.folder / "posterior.safetensors")
            mask_posterior_(model, masks)
            # The weights that are left have felt the KL already: it needs no warm-up.
            optimization = settings.model_dump(exclude={"variational"})
            stage = SparseStage(**optimization, kl_coefficient=self._recipe.sparse.kl_coefficient)
        train_stage(
            self.run,
            level.stage,
            model,
            stage,
            lambda _: self._score(model, masks),
            masks=masks,
            teacher=self._teacher,
            start=self._find_start(level.stage),
        )


def _collect_shipped_weights(model: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Weights of these layers in float16, with zeros where the layers would lose weights now."""
    weights = {}
    for name in names:
        layer = model.get_submodule(name)
        if isinstance(layer, Variational):
            weights[name] = torch.where(layer.mask(), layer.weight, 0).half()
    return weights
