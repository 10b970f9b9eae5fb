"""The stages of a run: dense training, sparse training, the decision, fine-tuning, integers. Each can be resumed."""

import copy

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
from .finetuning import describe_missed, finetune_levels
from .levels import choose_level
from .log_alpha_history import LogAlphaHistory
from .network_files import read_network_
from .quantizing import tune_for_integers
from .recorded_latency import LATENCY_FILE, RecordedLatency
from .stage_context import StageContext
from .starting_network import make_variational_
from .twin import list_twin_stages


def train_stages(context: StageContext) -> Compressed:
    """Train the stages in order. Stages before the checkpoint are not trained again.

    Between the stages, networks and masks pass through files: a resumed run reads the same ones.

    Args:
        context: The run, from its beginning or from where it was interrupted.

    Returns:
        The dense network, the networks of all levels, and the network of the run.

    Raises:
        TrainingError: The loss is no longer finite, everything is removed (collapse), or no level of the budget is met.
        Interrupted: On Ctrl-C or a termination signal, after the step at hand has been saved.
    """
    run, recipe = context.run, context.run.recipe
    model = copy.deepcopy(context.initial)
    dense = _train_dense(context, model)
    if not context.has_passed("sparse"):
        with run.metrics.show_phase("tracing"):
            make_variational_(model, context.example_inputs, recipe)
        _train_sparse(context, model, dense)
        with run.metrics.show_phase("deciding"):
            decide_levels(context, dense)
    dense_held_out = context.score_held_out(dense)
    tuned = finetune_levels(context, dense_held_out)
    if recipe.quantize.aware:
        tuned = tune_for_integers(context, tuned, dense)
    twin = None
    if recipe.twin:
        twin = _train_twin(context, copy.deepcopy(dense))
        dense_held_out = context.score_held_out(twin)
    chosen = choose_level(tuned, dense_held_out, recipe.budget.allowed_loss)
    return Compressed(
        dense=dense,
        levels=tuned,
        chosen=chosen,
        dense_held_out=dense_held_out,
        data=run.data,
        example_inputs=context.example_inputs,
        passed_over=find_passed_over(dense, recipe.posterior, example_inputs=context.example_inputs),
        missed=describe_missed(context, chosen, dense_held_out),
        twin=twin,
    )


def _train_dense(context: StageContext, model: nn.Module) -> nn.Module:
    """Train `model` without posteriors, or read it back; returns a copy, which may teach the later stages."""
    recipe = context.run.recipe
    if context.has_passed("dense"):
        read_network_(model, context.run.folder / "dense.safetensors")
    else:
        if recipe.dense.epochs:
            context.train("dense", model, recipe.dense)
        context.write(model, "dense", "dense")
    dense = copy.deepcopy(model).cpu().eval()
    if context.teacher is None and recipe.teacher.weight:
        context.teacher = context.make_teacher(dense)
    return dense


def _train_sparse(context: StageContext, model: nn.Module, dense: nn.Module) -> None:
    """Train a variational network, and write its posterior."""
    recipe, folder = context.run.recipe, context.run.folder
    history = LogAlphaHistory(folder / "log_alpha.json", resume=context.find_start("sparse") is not None)
    threshold = recipe.resolved_threshold
    # A held-out threshold is chosen after the last epoch; until then that of the layers counts.
    settings = recipe.masks.model_copy(update={"threshold": None if threshold == "held_out" else threshold})

    def end_epoch(epoch: int) -> dict[str, float]:
        history.record(epoch, model, write=context.is_main)
        row = context.score(model, compute_masks(model, settings, example_inputs=context.example_inputs))
        _refuse_collapse(context, row, epoch)
        if context.is_main and recipe.sparse.snapshots:
            weights = _collect_shipped_weights(model, recipe.sparse.snapshots)
            save_tensors(weights, folder / "snapshots" / f"{epoch:04}.safetensors")
        return row

    removal = _plan_removal(context, dense)
    context.train("sparse", model, recipe.sparse, on_epoch_end=end_epoch, removal=removal)
    context.write(model, "posterior", "sparse", context.levels[-1].folder)


def _plan_removal(context: StageContext, dense: nn.Module) -> GradualRemoval | None:
    """What removes channels on the way to the budget, if there is one."""
    run, budget = context.run, context.run.recipe.budget
    if budget.kind is None:
        return None
    steps = count_stage_steps(run.recipe.sparse, count_epoch_batches(run))
    stretches = plan_stretches(budget.levels, steps, reached_at=budget.reached_at, cuts=budget.cuts)
    folders = {level.part: level.folder for level in context.levels}

    def write_posterior(allowed: float, model: nn.Module) -> None:
        context.write(model, "posterior", "sparse", folders[allowed])

    latency = None
    if context.measure_part is not None:
        latency = RecordedLatency(context.measure_part, run.folder / LATENCY_FILE, run.accelerator).measure_at
    return GradualRemoval(
        budget.kind,
        stretches,
        dense,
        context.example_inputs,
        budget.round_to,
        on_level=write_posterior,
        latency=latency,
    )


def _refuse_collapse(context: StageContext, row: dict[str, float], epoch: int) -> None:
    """Refuse a network of next to no weights that is no better than a constant.

    The KL has won before the data had a say, and no later epoch brings back what is removed.
    """
    labels = context.run.data.holdout.labels
    chance = float(labels.bincount().max()) / max(len(labels), 1)
    collapsed = row["sparsity"] > 0.99 and row["accuracy"] <= 1.05 * chance
    if collapsed and not context.run.recipe.masks.allow_empty:
        raise TrainingError(
            f"collapse in epoch {epoch}: {100 * row['sparsity']:.2f} % of the weights are removed and the network "
            f"is no better than a constant ({100 * row['accuracy']:.1f} %). The KL was at full weight before the "
            "weights had learned anything: warm it up (sparse.warmup_from, sparse.warmup_to), begin with dense "
            "training (dense.epochs), or lower sparse.kl_coefficient. If the labels are random, this is the "
            "right answer: set masks.allow_empty"
        )


def _train_twin(context: StageContext, model: nn.Module) -> nn.Module:
    """Train the dense network on, in place, as long as the stages after the dense one took; returns it."""
    for name, stage in list_twin_stages(context.run.recipe).items():
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
