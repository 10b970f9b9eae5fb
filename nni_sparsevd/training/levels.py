"""The levels of a budget: each is a network of the sparse stage, with a decision and a fine-tuning of its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn

from ..files import read_json, write_json
from ..masks import Masks
from ..measure import cost_function
from ..recipe import BudgetSettings, Recipe
from ..regularize import misses
from .twin import TWIN_STAGES


@dataclass(frozen=True)
class Level:
    """One of the networks of a run, with a folder and stages of its own.

    A run without a budget, or with a budget of one level, has one, in the run folder itself.
    """

    part: float | None
    """The part of the dense cost that may be left; None without a budget."""
    folder: Path
    """Where its files are."""
    suffix: str = ""
    """What tells its stages from those of other levels in metrics and checkpoint."""
    place: int = 0
    """Its place among the levels of the run, from large to small."""

    @property
    def stage(self) -> str:
        """Name of its fine-tuning there."""
        return f"finetune{self.suffix}"

    @property
    def quantize_stage(self) -> str:
        """Name of its tuning for integers of eight bits there."""
        return f"quantize{self.suffix}"


@dataclass(frozen=True)
class TunedLevel:
    """A level at the end of training."""

    level: Level
    masked: nn.Module
    """The network after the last of its stages, ordinary, with zeros where the masks remove."""
    masks: Masks
    """The decision."""
    held_out: float
    """Accuracy on held-out images."""

    def is_within(self, tolerance: float, accuracy: float) -> bool:
        """Whether its accuracy on held-out images is no more than `tolerance` below the given one."""
        return self.held_out >= accuracy - tolerance


@dataclass(frozen=True)
class ReachedLevel:
    """What the network of a level costs, in the unit of the budget's kind; latencies are parts of the dense one's."""

    part: float
    """The part of the dense cost that was allowed."""
    reached: float


@dataclass(frozen=True)
class BudgetAccount:
    """How close the levels of a budget were met: budget.json."""

    kind: str
    dense: float
    """Cost of the dense network."""
    levels: tuple[ReachedLevel, ...]
    """From large to small."""

    def is_met(self, allowed: float) -> bool:
        """Whether the network of the level to which this part of the cost was allowed costs at most 5 % more."""
        return not any(level.part == allowed for level in self.missed)

    @property
    def missed(self) -> tuple[ReachedLevel, ...]:
        """The levels that were missed."""
        return tuple(level for level in self.levels if misses(level.reached, level.part * self.dense))

    def describe_missed(self, round_to: int) -> str:
        """Say which levels were missed, and why.

        Args:
            round_to: What is left of a group of channels is a multiple of this.
        """
        allowed = ", ".join(f"{level.part:g}" for level in self.missed)
        left = ", ".join(f"{level.reached / self.dense:.3f}" for level in self.missed)
        setting = self.kind.partition(" ")[0]
        return (
            f"budget.{setting} = {allowed} was not met: {left} of the dense network is left, and no more channels "
            "can go. Channels without a gate, and the last of each group, always stay; "
            f"budget.round_to = {round_to} keeps as many of each group. The run folder holds the network"
        )

    def write(self, path: Path) -> None:
        """Write the account as JSON."""
        write_json(path, asdict(self))


def read_account(path: Path) -> BudgetAccount:
    """Read what `BudgetAccount.write` has written."""
    values = read_json(path)
    return BudgetAccount(values["kind"], values["dense"], tuple(ReachedLevel(**row) for row in values["levels"]))


def account_levels(
    settings: BudgetSettings,
    dense: nn.Module,
    networks: Mapping[float, nn.Module],
    example_inputs: Tensor,
    measure_part: Callable[[nn.Module], float] | None = None,
) -> BudgetAccount:
    """Measure how close the levels of a budget were met.

    Args:
        settings: The budget.
        dense: The network before anything was removed.
        networks: Part of the cost that is allowed -> the ordinary network of that level.
        example_inputs: Inputs that the network accepts.
        measure_part: Measures a budget of latency, in parts of the dense network's.

    Returns:
        The account.
    """
    assert settings.kind is not None
    if measure_part is not None:
        latencies = tuple(ReachedLevel(allowed, measure_part(network)) for allowed, network in networks.items())
        precision = " int8" if settings.precision == "int8" else ""
        return BudgetAccount(f"latency in {settings.runtime}{precision}", 1.0, latencies)
    cost = cost_function(settings.kind, example_inputs)
    costs = tuple(ReachedLevel(allowed, cost(network)) for allowed, network in networks.items())
    return BudgetAccount(settings.kind, cost(dense), costs)


def list_levels(recipe: Recipe, folder: Path) -> tuple[Level, ...]:
    """List the levels of a recipe, from large to small.

    Args:
        recipe: The recipe.
        folder: The run folder.

    Returns:
        At least one.
    """
    allowed_parts: tuple[float | None, ...] = recipe.budget.levels or (None,)
    if len(allowed_parts) == 1:
        return (Level(allowed_parts[0], folder),)
    levels = []
    for place, allowed in enumerate(allowed_parts):
        name = f"{allowed:g}"
        levels.append(Level(allowed, folder / "levels" / name, f"_{name}", place))
    return tuple(levels)


def list_stages(recipe: Recipe) -> tuple[str, ...]:
    """List the stages of a recipe, in the order in which they are trained."""
    levels = list_levels(recipe, Path())
    tuning, quantizing = [level.stage for level in levels], [level.quantize_stage for level in levels]
    return ("dense", "sparse", *tuning, *quantizing, *TWIN_STAGES)


def find_best_accuracy(tuned: Sequence[TunedLevel], dense_accuracy: float) -> float:
    """Find the accuracy on held-out images against which a loss is counted: the best of the run.

    The dense network before the sparse stage was trained for fewer epochs, and large levels are often more accurate.
    Compared with it alone, a network that has lost ten points could seem to have lost nothing.

    Args:
        tuned: Levels of the budget.
        dense_accuracy: That of the dense network, or of its twin.
    """
    return max(dense_accuracy, *(level.held_out for level in tuned))


def choose_level(tuned: Sequence[TunedLevel], dense_accuracy: float, tolerance: float) -> TunedLevel:
    """Choose the network of the run: the smallest that is accurate enough, or else the most accurate.

    Args:
        tuned: At least one level, from large to small.
        dense_accuracy: That of the dense network, or of its twin, on held-out images.
        tolerance: How much less accurate than the best of them a network may be.
    """
    best = find_best_accuracy(tuned, dense_accuracy)
    accurate = [level for level in tuned if level.is_within(tolerance, best)]
    if accurate:
        return accurate[-1]
    return max(tuned, key=lambda level: level.held_out)
