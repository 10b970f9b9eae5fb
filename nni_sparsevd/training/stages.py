"""The whole way from a recipe to a masked network: dense, sparse, threshold, masks, fine-tuning.  Resumable."""

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.console import Console
from torch import Tensor, nn

from .. import data as datasets
from .. import models
from ..convert import bake_, sparsify_
from ..errors import ModelError, SettingError, TrainingError
from ..files import PARTIAL_SUFFIX, delete_partial_files, load_tensors, read_json, save_tensors, write_json
from ..graph import channel_graph
from ..masks import Masks, compute_masks, count_weights, flatten_masks, unflatten_masks
from ..nn import Variational, named_posteriors
from ..recipe import Recipe, SparseStage, Stage, read_recipe, write_recipe
from .checkpoint import Checkpoint, read_checkpoint
from .environment import describe_environment
from .loop import Run, fit
from .masked_posterior import mask_posterior_
from .metrics import Metrics
from .network_files import read_network_, write_network
from .optimizer import build_optimizer
from .scoring import evaluate_baked
from .threshold import choose_threshold

STAGES = ("dense", "sparse", "finetune")
BINS = torch.linspace(-20, 20, 81)


@dataclass(frozen=True)
class Compressed:
    """What training leaves: the network before Sparse VD, and the masked one with its masks, all ordinary."""

    dense: nn.Module
    masked: nn.Module
    masks: Masks
    data: datasets.DataSets
    example_inputs: Tensor


def compress(
    recipe: Recipe, folder: Path, command: list[str], *, resume: bool = False, overwrite: bool = False
) -> Compressed:
    """Run `recipe` in `folder`, or go on there where an interrupted run stopped, bit-exactly.

    With `overwrite`, the run that is in `folder` is deleted once data and network are known to be good.

    Raises `SettingError` when the folder is in use or another recipe began there; `DataError`, `ModelError`,
    `TrainingError` as they come up.  Whatever happens, the folder holds the last good checkpoint.
    """
    accelerator = _accelerator(recipe)
    _check_folder(recipe, folder, resume, overwrite)
    accelerator.wait_for_everyone()  # every process has looked before one writes
    torch.manual_seed(recipe.seed)
    data = datasets.load_data(recipe.data, recipe.data.image_size or models.find_image_size(recipe.model), recipe.seed)
    model = models.create_model(recipe.model, data.num_classes, data.in_chans, data.image_size)
    example = data.normalize(data.train.images[:2])
    _try_out(model, example, recipe)
    if accelerator.is_main_process:  # only now that data and network are known to be good
        if overwrite and folder.exists():
            shutil.rmtree(folder)
        delete_partial_files(folder)
        if not resume:
            write_recipe(recipe, folder / "recipe.toml")
        if not (folder / "environment.json").exists():
            write_json(folder / "environment.json", describe_environment(command, recipe.seed))
    accelerator.wait_for_everyone()
    start = read_checkpoint(folder / "checkpoint.safetensors")
    at = STAGES.index(start.place.stage) if start is not None else -1
    keep = dict.fromkeys(STAGES[: max(at, 0)], 1 << 60)
    if start is not None:
        keep[start.place.stage] = start.place.step // start.place.per_epoch
    with Metrics(folder, Console(), keep, write=accelerator.is_main_process) as metrics:
        way = _Way(Run(recipe, folder, data, accelerator, metrics), example, start, at)
        return way.go(model)


def _try_out(model: nn.Module, example: Tensor, recipe: Recipe) -> None:
    """One forward pass, one conversion and the optimizers, before anything is written or trained."""
    for stage in (recipe.dense, recipe.sparse, recipe.finetune):
        build_optimizer(model, stage)
    try:
        with torch.no_grad():
            copy.deepcopy(model).eval()(example)
    except RuntimeError as error:
        shape = "x".join(str(size) for size in example.shape[1:])
        raise ModelError(
            f"{recipe.model.name} does not run on images of {shape}: {str(error).splitlines()[0]}; "
            "set data.image_size, or the network's own size in model.arguments"
        ) from error
    if recipe.sparse.shrink_at is not None:
        channel_graph(model, example)  # or it would turn out after an epoch that this network cannot be traced
    trial = _variational(copy.deepcopy(model), example, recipe)
    learning = dict(named_posteriors(trial))
    unknown = [name for name in recipe.sparse.snapshots if not isinstance(learning.get(name), Variational)]
    if unknown:
        layers = ", ".join(name for name, module in learning.items() if isinstance(module, Variational))
        raise SettingError(f"sparse.snapshots: no weight posterior on {', '.join(unknown)}; they are on: {layers}")


def _variational(model: nn.Module, example: Tensor, recipe: Recipe) -> nn.Module:
    """Make `model` what the sparse stage begins with."""
    sparsify_(model, recipe.posterior, example_inputs=example)
    if recipe.sparse.checkpoint is not None:
        read_network_(model, recipe.sparse.checkpoint)
    return model


def _accelerator(recipe: Recipe) -> Accelerator:
    try:
        return Accelerator(mixed_precision=recipe.precision)
    except ValueError as error:  # this machine cannot, or the process has begun with another precision
        raise SettingError(f"precision={recipe.precision!r}: {error}") from None


def _check_folder(recipe: Recipe, folder: Path, resume: bool, overwrite: bool) -> None:
    path = folder / "recipe.toml"
    if resume and overwrite:
        raise SettingError("--overwrite and --resume exclude each other")
    if overwrite:
        if folder.exists() and not path.exists():
            raise SettingError(f"--overwrite: {folder} is no run folder (it has no recipe.toml); not deleted")
        return
    if resume:
        if not path.exists():
            raise SettingError(f"{folder}: nothing to resume, it has no recipe.toml")
        before, now = read_recipe(path).model_dump(), recipe.model_dump()
        changed = [f"{part}.{key}" if isinstance(now[part], dict) else part for part in now if before[part] != now[part]
                   for key in (now[part] if isinstance(now[part], dict) else [part])
                   if not isinstance(now[part], dict) or before[part][key] != now[part][key]]  # fmt: skip
        if changed:
            raise SettingError(f"{folder}: its run began with other settings: {', '.join(changed)}")
        return
    if folder.exists() and any(path.suffix != PARTIAL_SUFFIX for path in folder.iterdir()):
        raise SettingError(f"{folder}: is not empty; --resume goes on there, --overwrite begins again")


class _Way:
    """The stages in order; those before the checkpoint are not run again."""

    def __init__(self, run: Run, example: Tensor, start: Checkpoint | None, at: int) -> None:
        self.run, self.recipe, self.folder, self.data = run, run.recipe, run.folder, run.data
        self.example, self._start, self._at = example, start, at
        self._main = run.accelerator.is_main_process

    def go(self, model: nn.Module) -> Compressed:
        plain = copy.deepcopy(model)
        self._total = count_weights(model, {})[1]
        dense = self._dense(model)
        if self._at < STAGES.index("finetune"):
            model = _variational(model, self.example, self.recipe)
            self._sparse(model)
            self._write("posterior", model)
            masks = self._decide(model.cpu())
            bake_(model, masks, allow_empty=True)  # a residual branch may go whole; a collapse was refused before
            self._write("baked", model)
        tensors, _ = load_tensors(self.folder / "masks.safetensors")
        masks = unflatten_masks(tensors)
        model = read_network_(plain, self.folder / "baked.safetensors")  # whether or not the run was interrupted here
        self._finetune(model, masks)
        return Compressed(dense, bake_(model.cpu(), masks, allow_empty=True).eval(), masks, self.data, self.example)

    def _begin(self, stage: str) -> Checkpoint | None:
        return self._start if self._at == STAGES.index(stage) else None

    def _write(self, name: str, model: nn.Module) -> None:
        if self._main:
            resized = self.recipe.sparse.shrink_at is not None and name != "dense"
            write_network(model, self.folder / f"{name}.safetensors", resized=resized)
        self.run.accelerator.wait_for_everyone()

    def _dense(self, model: nn.Module) -> nn.Module:
        path = self.folder / "dense.safetensors"
        if self._at > 0:
            read_network_(model, path)
        elif self.recipe.dense.epochs:
            fit(self.run, "dense", model, self.recipe.dense, lambda _: self._row(model, {}), start=self._begin("dense"))
        if self._at <= 0:
            self._write("dense", model)
        return copy.deepcopy(model).cpu().eval()

    def _sparse(self, model: nn.Module) -> None:
        path = self.folder / "log_alpha.json"
        history = read_json(path) if self._at == 1 and path.exists() else {"edges": BINS.tolist(), "epochs": []}
        limit = self.recipe.masks.threshold
        setting = self.recipe.masks.model_copy(update={"threshold": limit if isinstance(limit, float) else None})

        def epoch_end(epoch: int) -> dict[str, float]:
            history["epochs"] = [row for row in history["epochs"] if row["epoch"] < epoch]
            history["epochs"].append({"epoch": epoch, "counts": _histograms(model)})
            if self._main:
                write_json(path, history)
            row = self._row(model, compute_masks(model, setting, example_inputs=self.example))
            self._refuse_collapse(row, epoch)
            if self._main and self.recipe.sparse.snapshots:
                beside = self.folder / "snapshots" / f"{epoch:04}.safetensors"
                save_tensors(_shipped(model, self.recipe.sparse.snapshots), beside)
            return row

        fit(self.run, "sparse", model, self.recipe.sparse, epoch_end, start=self._begin("sparse"))

    def _row(self, model: nn.Module, masks: Masks) -> dict[str, float]:
        kept = count_weights(model, masks)[0]
        score = evaluate_baked(model, masks, self.data, self.data.holdout)
        return {
            "accuracy": score.accuracy,
            "held_out_loss": score.loss,
            "sparsity": 1 - kept / self._total,
            "compression": self._total / max(kept, 1),
        }

    def _refuse_collapse(self, row: dict[str, float], epoch: int) -> None:
        """Nearly nothing left, and no better than a constant: the KL won before the data had a say."""
        chance = float(self.data.holdout.labels.bincount().max()) / max(len(self.data.holdout), 1)
        collapsed = row["sparsity"] > 0.99 and row["accuracy"] <= 1.05 * chance
        if collapsed and not self.recipe.masks.allow_empty:
            raise TrainingError(
                f"collapse in epoch {epoch}: {100 * row['sparsity']:.2f} % of the weights are removed and the network "
                f"is no better than a constant ({100 * row['accuracy']:.1f} %). The KL was at full weight before the "
                "weights had learnt anything: warm it up (sparse.warmup_from, sparse.warmup_to), begin with dense "
                "training (dense.epochs), or lower sparse.kl_coefficient. If the labels are random, this is the "
                "right answer: set masks.allow_empty"
            )

    def _decide(self, model: nn.Module) -> Masks:
        curve = choose_threshold(model, self.recipe.masks, self.data, self.example, self._total)
        setting = self.recipe.masks.model_copy(update={"threshold": curve.chosen})
        masks = compute_masks(model, setting, example_inputs=self.example)
        if self._main:
            write_json(self.folder / "curve.json", curve.to_dict())
        if self._main:
            save_tensors(flatten_masks(masks), self.folder / "masks.safetensors")
        self.run.accelerator.wait_for_everyone()
        return masks

    def _finetune(self, model: nn.Module, masks: Masks) -> None:
        stage: Stage = self.recipe.finetune
        if not stage.epochs:
            return
        if self.recipe.finetune.variational:
            sparsify_(model, self.recipe.posterior, example_inputs=self.example)
            read_network_(model, self.folder / "posterior.safetensors")
            mask_posterior_(model, masks)
            stage = SparseStage(
                **stage.model_dump(exclude={"variational"}), kl_coefficient=self.recipe.sparse.kl_coefficient
            )
        begin = self._begin("finetune")
        row = lambda _: self._row(model, masks)  # noqa: E731
        fit(self.run, "finetune", model, stage, row, masks=masks, start=begin)


def _shipped(model: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Weights of the layers `names` with what they would lose now at zero, in float16."""
    layers = {name: model.get_submodule(name) for name in names}
    return {
        name: torch.where(layer.mask(), layer.weight, 0).half()
        for name, layer in layers.items()
        if isinstance(layer, Variational)
    }


def _histograms(model: nn.Module) -> dict[str, list[int]]:
    counts = {}
    for name, module in named_posteriors(model):
        values = module.log_alpha().detach().float().cpu().clamp(-20, 20)
        counts[name] = torch.histogram(values.flatten(), BINS).hist.long().tolist()
    return counts
