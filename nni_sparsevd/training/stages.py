"""The stages of a run: dense training, sparse training, the decision, fine-tuning, integers. Each can be resumed."""

import copy
from typing import final

import torch
from torch import Tensor, nn

from ..convert import find_passed_over
from ..errors import TrainingError
from ..files import save_tensors
from ..masks import compute_masks
from ..nn import Variational
from ..regularize import GradualRemoval, plan_stretches
from .batches import count_epoch_batches, count_stage_steps
from .compressed import Compressed
from .deciding import decide_levels
from .finetuning import describe_missed, finish_levels
from .levels import choose_level, list_levels
from .log_alpha_history import LogAlphaHistory
from .network_files import read_network_
from .quantizing import tune_for_integers
from .recorded_latency import LATENCY_FILE, MeasurePart, RecordedLatency
from .scoring import evaluate
from .stage_context import StageContext
from .starting_network import make_variational_
from .twin import list_twin_stages


@final
class StageSequence:
    """Trains the stages in order. Stages before the checkpoint are not trained again.

    Between the stages, networks and masks pass through files: a resumed run reads the same ones.
    """

    def __init__(self, context: StageContext, measure_part: MeasurePart | None = None) -> None:
        """Prepare to train.

        Args:
            context: The run, from its beginning or from where it was interrupted.
            measure_part: Measures a budget of latency, in parts of the dense network's.
        """
        self._context, self._measure_part = context, measure_part
        self._run, self._recipe, self._data = context.run, context.run.recipe, context.run.data
        self._example_inputs = context.example_inputs
        self._levels = list_levels(self._recipe, self._run.folder)

    def train(self, model: nn.Module) -> Compressed:
        """Train all stages that are left.

        Args:
            model: The network of the recipe as it was created.

        Returns:
            The dense network, the networks of all levels, and the network of the run.

        Raises:
            TrainingError: The loss is no longer finite, everything is removed (collapse), or no level of the budget is
                met.
            Interrupted: On Ctrl-C or a termination signal, after the step at hand has been saved.
        """
        plain = copy.deepcopy(model)
        context = self._context
        dense = self._train_dense(model)
        if not context.has_passed("sparse"):
            with self._run.metrics.show_phase("tracing"):
                make_variational_(model, self._example_inputs, self._recipe)
            self._train_sparse(model, dense)
            with self._run.metrics.show_phase("deciding"):
                decide_levels(context, self._levels, plain, dense, self._measure_part)
        dense_held_out = self._score_held_out(dense)
        tuned = finish_levels(context, self._levels, plain, dense_held_out)
        if self._recipe.quantize.aware:
            tuned = tune_for_integers(context, tuned, dense)
        twin = None
        if self._recipe.twin:
            twin = self._train_twin(copy.deepcopy(dense))
            dense_held_out = self._score_held_out(twin)
        chosen = choose_level(tuned, dense_held_out, self._recipe.budget.allowed_loss)
        return Compressed(
            dense=dense,
            levels=tuned,
            chosen=chosen,
            dense_held_out=dense_held_out,
            data=self._data,
            example_inputs=self._example_inputs,
            passed_over=find_passed_over(dense, self._recipe.posterior, example_inputs=self._example_inputs),
            missed=describe_missed(context, chosen, dense_held_out),
            twin=twin,
        )

    def _score_held_out(self, network: nn.Module) -> float:
        """The accuracy of a network on held-out images."""
        return evaluate(network, self._data, self._data.holdout).accuracy

    def _train_dense(self, model: nn.Module) -> nn.Module:
        """Train `model` without posteriors, or read it back; returns a copy, which may teach the later stages."""
        context = self._context
        if context.has_passed("dense"):
            read_network_(model, self._run.folder / "dense.safetensors")
        else:
            if self._recipe.dense.epochs:
                context.train("dense", model, self._recipe.dense)
            context.write(model, "dense", "dense")
        dense = copy.deepcopy(model).cpu().eval()
        if context.teacher is None and self._recipe.teacher.weight:
            context.teacher = context.make_teacher(dense)
        return dense

    def _train_sparse(self, model: nn.Module, dense: nn.Module) -> None:
        """Train a variational network, and write its posterior."""
        recipe, context = self._recipe, self._context
        history = LogAlphaHistory(self._run.folder / "log_alpha.json", resume=context.find_start("sparse") is not None)
        threshold = recipe.resolved_threshold
        # A held-out threshold is chosen after the last epoch; until then that of the layers counts.
        settings = recipe.masks.model_copy(update={"threshold": None if threshold == "held_out" else threshold})

        def end_epoch(epoch: int) -> dict[str, float]:
            history.record(epoch, model, write=context.is_main)
            row = context.score(model, compute_masks(model, settings, example_inputs=self._example_inputs))
            self._refuse_collapse(row, epoch)
            if context.is_main and recipe.sparse.snapshots:
                weights = _collect_shipped_weights(model, recipe.sparse.snapshots)
                save_tensors(weights, self._run.folder / "snapshots" / f"{epoch:04}.safetensors")
            return row

        removal = self._plan_removal(dense)
        context.train("sparse", model, recipe.sparse, on_epoch_end=end_epoch, removal=removal)
        context.write(model, "posterior", "sparse", self._levels[-1].folder)

    def _plan_removal(self, dense: nn.Module) -> GradualRemoval | None:
        """What removes channels on the way to the budget, if there is one."""
        budget = self._recipe.budget
        if budget.kind is None:
            return None
        steps = count_stage_steps(self._recipe.sparse, count_epoch_batches(self._run))
        stretches = plan_stretches(budget.levels, steps, reached_at=budget.reached_at, cuts=budget.cuts)
        folders = {level.part: level.folder for level in self._levels}

        def write_posterior(allowed: float, model: nn.Module) -> None:
            self._context.write(model, "posterior", "sparse", folders[allowed])

        latency = None
        if self._measure_part is not None:
            record = RecordedLatency(self._measure_part, self._run.folder / LATENCY_FILE, self._run.accelerator)
            latency = record.measure_at
        return GradualRemoval(
            budget.kind,
            stretches,
            dense,
            self._example_inputs,
            budget.round_to,
            on_level=write_posterior,
            latency=latency,
        )

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

    def _train_twin(self, model: nn.Module) -> nn.Module:
        """Train the dense network on, in place, as long as the stages after the dense one took; returns it."""
        context = self._context
        for name, stage in list_twin_stages(self._recipe).items():
            # A checkpoint of the later stage holds what the earlier one has learned.
            if not context.has_passed(name):
                context.train(name, model, stage)
        context.write(model, "twin", "twin_finetune")
        return model.cpu().eval()


def _collect_shipped_weights(model: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Weights of these layers in float16, with zeros where the layers would lose weights now."""
    weights = {}
    for name in names:
        layer = model.get_submodule(name)
        if isinstance(layer, Variational):
            weights[name] = torch.where(layer.mask(), layer.weight, 0).half()
    return weights
