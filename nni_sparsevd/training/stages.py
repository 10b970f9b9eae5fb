"""The stages of a run: dense training, sparse training, the decision, fine-tuning. Each can be resumed."""

import copy
from dataclasses import asdict, dataclass
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
from .batches import Batches
from .checkpoint import Checkpoint
from .gradual_removal import GradualRemoval
from .log_alpha_history import LogAlphaHistory
from .loop import train_stage
from .masked_posterior import mask_posterior_
from .network_files import read_network_, write_network
from .run import Run
from .scoring import evaluate_baked
from .sensitivity import SENSITIVITY_FILE, measure_sensitivities
from .starting_network import make_variational_
from .teacher import Teacher
from .threshold import choose_threshold
from .twin import TWIN_STAGES, list_twin_stages

STAGES = ("dense", "sparse", "finetune", *TWIN_STAGES)
"""In the order in which they are trained; the decision falls between sparse and finetune."""


@dataclass(frozen=True)
class Compressed:
    """What training leaves.

    Attributes:
        dense: The network before Sparse VD, ordinary.
        masked: The network after fine-tuning, ordinary, with zeros where the masks remove.
        masks: The decision.
        data: The data of the run.
        example_inputs: Two normalized training images, shape (2, channels, height, width).
        passed_over: Weights and channel groups that had no posterior -> the reason.
        twin: The dense network, trained on for as long as the run; None where the recipe asks for none.
    """

    dense: nn.Module
    masked: nn.Module
    masks: Masks
    data: DataSets
    example_inputs: Tensor
    passed_over: dict[str, str]
    twin: nn.Module | None = None


@final
class StageSequence:
    """Trains the stages in order, and decides what is removed. Stages before the checkpoint are not trained again.

    Between the stages, networks and masks pass through files: a resumed run reads the same ones.
    """

    def __init__(
        self, run: Run, example_inputs: Tensor, start: Checkpoint | None, teacher: nn.Module | None = None
    ) -> None:
        """Prepare to train, from the checkpoint `start` if there is one.

        Args:
            run: The recipe under way.
            example_inputs: Two normalized training images.
            start: Where an interrupted run stood.
            teacher: The network that `recipe.teacher.name` asks for, if it does.
        """
        self.run, self._recipe, self._folder, self._data = run, run.recipe, run.folder, run.data
        self._example_inputs, self._start = example_inputs, start
        self._reached = -1 if start is None else STAGES.index(start.place.stage)
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
        if self._reached < STAGES.index("finetune"):
            self._train_sparse(make_variational_(model, self._example_inputs, self._recipe), dense)
            masks = self._decide(model.cpu())
            # A residual branch may be removed altogether; a collapse has been refused before.
            bake_(model, masks, allow_empty=True)
            self._write("baked", model)
        # Read back even if the run was not interrupted here, so that a resumed run has the same network.
        masks = unflatten_masks(load_tensors(self._folder / "masks.safetensors")[0])
        masked = self._finetune_or_read(plain, masks)
        passed_over = find_passed_over(dense, self._recipe.posterior, example_inputs=self._example_inputs)
        twin = self._train_twin(copy.deepcopy(dense)) if self._recipe.twin else None
        return Compressed(dense, masked, masks, self._data, self._example_inputs, passed_over, twin)

    def _find_start(self, stage: str) -> Checkpoint | None:
        """The checkpoint, where it is one of this stage."""
        return self._start if self._reached == STAGES.index(stage) else None

    def _write(self, name: str, model: nn.Module) -> None:
        if self._is_main:
            resized = self._recipe.changes_sizes and name != "dense"
            write_network(model, self._folder / f"{name}.safetensors", resized=resized)
        # The other processes may read the file at once.
        self.run.accelerator.wait_for_everyone()

    def _train_dense(self, model: nn.Module) -> nn.Module:
        """Train `model` without posteriors, or read it back; returns a copy."""
        if self._reached > STAGES.index("dense"):
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
            self._write("dense", model)
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
        resumes = self._reached == STAGES.index("sparse")
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
        self._write("posterior", model)
        if self._is_main:
            # On the way to a budget, natural steps keep the variances at rest.
            sensitivities = measure_sensitivities(model, len(self._data.train), at_rest=removal is not None)
            write_json(self._folder / SENSITIVITY_FILE, [sensitivity.to_dict() for sensitivity in sensitivities])
        if removal is not None:
            arrival = removal.arrive(model.cpu())
            if self._is_main:
                write_json(self._folder / "budget.json", asdict(arrival))

    def _plan_removal(self, dense: nn.Module) -> GradualRemoval | None:
        """What removes channels on the way to the budget, if there is one."""
        recipe = self._recipe
        if recipe.budget.kind is None:
            return None
        steps = recipe.sparse.epochs * Batches(self.run, "sparse").per_epoch
        return GradualRemoval(recipe.budget, dense, self._example_inputs, steps)

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

    def _decide(self, model: nn.Module) -> Masks:
        """Choose the threshold, and write the curve and the masks."""
        recipe, data = self._recipe, self._data
        curve = choose_threshold(
            model, recipe.resolved_threshold, recipe.masks, data, self._example_inputs, dense_weights=self._total
        )
        settings = recipe.masks.model_copy(update={"threshold": curve.chosen})
        masks = compute_masks(model, settings, example_inputs=self._example_inputs)
        if self._is_main:
            write_json(self._folder / "curve.json", curve.to_dict())
            save_tensors(flatten_masks(masks), self._folder / "masks.safetensors")
        self.run.accelerator.wait_for_everyone()
        return masks

    def _finetune_or_read(self, plain: nn.Module, masks: Masks) -> nn.Module:
        """Fine-tune the masked network, or read it back where the checkpoint is of a later stage."""
        if self._reached > STAGES.index("finetune"):
            return read_network_(plain, self._folder / "tuned.safetensors").eval()
        masked = read_network_(plain, self._folder / "baked.safetensors")
        self._finetune(masked, masks)
        bake_(masked.cpu(), masks, allow_empty=True)
        # Without a twin the last checkpoint holds this network.
        if self._recipe.twin:
            self._write("tuned", masked)
        return masked.eval()

    def _train_twin(self, model: nn.Module) -> nn.Module:
        """Train the dense network on, in place, as long as the sparse stage and the fine-tuning took; returns it."""
        for name, stage in list_twin_stages(self._recipe).items():
            # A checkpoint of the later stage holds what the earlier one has learned.
            if self._reached <= STAGES.index(name):
                train_stage(
                    self.run,
                    name,
                    model,
                    stage,
                    lambda _: self._score(model, {}),
                    teacher=self._teacher,
                    start=self._find_start(name),
                )
        self._write("twin", model)
        return model.cpu().eval()

    def _finetune(self, model: nn.Module, masks: Masks) -> None:
        """Train what the masks keep, with the noise of its posteriors or without."""
        settings = self._recipe.finetune
        if not settings.epochs:
            return
        stage: Stage = settings
        if settings.variational:
            sparsify_(model, self._recipe.posterior, example_inputs=self._example_inputs)
            read_network_(model, self._folder / "posterior.safetensors")
            mask_posterior_(model, masks)
            # The weights that are left have felt the KL already: it needs no warm-up.
            optimization = settings.model_dump(exclude={"variational"})
            stage = SparseStage(**optimization, kl_coefficient=self._recipe.sparse.kl_coefficient)
        train_stage(
            self.run,
            "finetune",
            model,
            stage,
            lambda _: self._score(model, masks),
            masks=masks,
            teacher=self._teacher,
            start=self._find_start("finetune"),
        )


def _collect_shipped_weights(model: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Weights of these layers in float16, with zeros where the layers would lose weights now."""
    weights = {}
    for name in names:
        layer = model.get_submodule(name)
        if isinstance(layer, Variational):
            weights[name] = torch.where(layer.mask(), layer.weight, 0).half()
    return weights
