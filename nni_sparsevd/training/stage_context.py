"""What the stages of a run share: where the run stands, its teacher, and how networks are trained, scored, written."""

from pathlib import Path
from typing import final

from torch import Tensor, nn

from ..masks import Masks, count_weights
from ..recipe import Stage
from ..regularize import GradualRemoval
from .checkpoint import Checkpoint
from .levels import list_levels, list_stages
from .loop import OnEpochEnd, StageTrainer
from .network_files import write_network
from .recorded_latency import MeasurePart
from .run import Run
from .scoring import evaluate, evaluate_baked
from .teacher import Teacher


@final
class StageContext:
    """A run between its stages: which of them are done, who teaches, and how networks are trained, scored and written.

    Args:
        run: The recipe under way.
        initial: The network of the recipe as it was created; the stages train copies of it.
        example_inputs: Two normalized training images, shape (2, channels, height, width).
        start: Where an interrupted run stood; None: the run begins.
        teacher: The network that `recipe.teacher.name` asks for, if it does.
        measure_part: Measures a budget of latency, in parts of the dense network's; None without such a budget.
    """

    def __init__(
        self,
        run: Run,
        initial: nn.Module,
        example_inputs: Tensor,
        start: Checkpoint | None,
        teacher: nn.Module | None,
        measure_part: MeasurePart | None,
    ) -> None:
        self.run, self.initial, self.example_inputs = run, initial, example_inputs
        self.measure_part = measure_part
        self.levels = list_levels(run.recipe, run.folder)
        """The levels of the budget, from large to small; one where there is no budget."""
        self.dense_weights = count_weights(initial, {})[1]
        """Weights of the network before anything was removed, to which compression is relative."""
        self.teacher = None if teacher is None else self.make_teacher(teacher)
        """Whose outputs the stages learn, beside the labels; None: they learn the labels alone."""
        self.is_main = run.accelerator.is_main_process
        """Whether this process writes. All processes hold the same networks: one of them writes for all."""
        self._start = start
        self._stages = list_stages(run.recipe)
        self._reached = -1 if start is None else self._stages.index(start.place.stage)
        """Place of the checkpoint's stage among the stages."""

    def has_passed(self, stage: str) -> bool:
        """Whether the checkpoint is one of a later stage: this one is done, and its files are there."""
        return self._reached > self._stages.index(stage)

    def find_start(self, stage: str) -> Checkpoint | None:
        """The checkpoint, where it is one of this stage."""
        return self._start if self._reached == self._stages.index(stage) else None

    def make_teacher(self, network: nn.Module) -> Teacher:
        """Let a network teach as the recipe says."""
        return Teacher(network, self.run.recipe.teacher, self.run.accelerator.device)

    def train(
        self,
        name: str,
        model: nn.Module,
        stage: Stage,
        *,
        on_epoch_end: OnEpochEnd | None = None,
        masks: Masks | None = None,
        teacher: Teacher | None = None,
        removal: GradualRemoval | None = None,
    ) -> None:
        """Train a network in place through a stage, from its beginning or from the checkpoint.

        Args:
            name: Name of the stage in metrics and checkpoint.
            model: The network.
            stage: Length, optimizer and schedule.
            on_epoch_end: Scores the network after each epoch; None: `score`, with these masks.
            masks: What they remove stays zero.
            teacher: Whose outputs the network learns to give; None: those of the run's teacher, if it has one.
            removal: What removes channels on the way to a budget.
        """
        StageTrainer(
            self.run,
            name,
            model,
            stage,
            on_epoch_end or (lambda _: self.score(model, masks or {})),
            masks=masks,
            teacher=teacher or self.teacher,
            removal=removal,
            start=self.find_start(name),
        ).train()

    def score_held_out(self, network: nn.Module) -> float:
        """The accuracy of an ordinary network on held-out images."""
        return evaluate(network, self.run.data, self.run.data.holdout).accuracy

    def score(self, model: nn.Module, masks: Masks) -> dict[str, float]:
        """How good what would ship is on held-out images, and how small."""
        kept = count_weights(model, masks)[0]
        score = evaluate_baked(model, masks, self.run.data, self.run.data.holdout)
        return {
            "accuracy": score.accuracy,
            "held_out_loss": score.loss,
            "sparsity": 1 - kept / self.dense_weights,
            "compression": self.dense_weights / max(kept, 1),
        }

    def write(self, model: nn.Module, name: str, stage: str, folder: Path | None = None) -> None:
        """Write a network as a stage has left it.

        Args:
            model: The network.
            name: Name of the file, without its suffix.
            stage: The stage, which tells whether the network may have other sizes than the recipe gives it.
            folder: The folder of a level; None: the run folder.
        """
        if self.is_main:
            path = (folder or self.run.folder) / f"{name}.safetensors"
            write_network(model, path, resized=self.run.recipe.changes_sizes_by(stage))
        # The other processes may read the file at once.
        self.run.accelerator.wait_for_everyone()
