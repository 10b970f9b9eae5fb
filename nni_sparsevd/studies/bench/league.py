"""A league: one committed file that says which network, which data, how long, how sparse, and which rivals."""

from importlib.resources import files
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from ...errors import SettingError
from ...recipe import DataSettings, ModelSettings, Stage, list_bundled_settings, read_bundled_settings
from ...settings import Fraction, Settings

FOLDER = files(__package__) / "leagues"


class League(Settings):
    """The protocol: every rival gets the same dense start, the same batches in the same order, the same steps."""

    title: str
    """Heading of its page."""
    about: str
    """A paragraph: what is compared, and within which budget."""
    kind: Literal["weights", "channels"]
    """Whether rivals remove single weights, up to a share of zeros, or whole channels, down to a part of the MACs."""
    model: ModelSettings
    """Which network."""
    data: DataSettings
    """Which data; its paths are relative to the folder that `--data` names."""
    channels_last: bool = False
    """Lay images out channels last, for every rival: convolutions are then faster on a CPU. Networks in whose backward
    pass PyTorch would crash get them channels first (docs/scale.md)."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of all training, for every rival; scores are computed in float32."""
    dense: Stage
    """Training of the dense start, once for each seed."""
    prune_epochs: PositiveInt
    """Epochs that a rival may take to decide; those that it does not take are added to fine-tuning."""
    tune_epochs: PositiveInt
    """Epochs of fine-tuning, in which removed weights stay at zero."""
    teacher_weight: Fraction = 0.0
    """Part of the loss that is the distance from the dense start's outputs (distillation), for every rival, in all its
    steps; the labels have the rest. For whole channels alone: rivals on single weights have losses of their own."""
    round_to: PositiveInt = 1
    """For whole channels: what is left of a layer is a multiple of this, for every rival whose framework can round."""
    levels: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Shares of zeros, or factors by which the MACs fall."""
    sweep_level: PositiveFloat
    """The level at which each rival's learning rate is chosen, with the first seed, on the hold-out."""
    rates: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Peak learning rates of the sweep, the same for everyone."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Seeds of start, data order, hold-out and noise."""
    rivals: tuple[str, ...] = ()
    """Names of the rivals; empty for all rivals of this kind."""

    @model_validator(mode="after")
    def _refuse_what_would_not_count(self) -> "League":
        if self.kind == "weights" and (self.teacher_weight or self.round_to > 1):
            raise ValueError(
                "teacher_weight and round_to are for leagues of whole channels: single weights follow neither"
            )
        return self

    @property
    def epochs(self) -> int:
        """Epochs after the dense start, for every rival."""
        return self.prune_epochs + self.tune_epochs

    def format_level(self, level: float) -> str:
        """A level as tables write it: "90 %" or "2×"."""
        return f"{100 * level:g} %" if self.kind == "weights" else f"{level:g}×"

    @property
    def scale(self) -> str:
        """What the levels measure."""
        return "zeros" if self.kind == "weights" else "fewer MACs"

    @property
    def level_titles(self) -> list[str]:
        """The levels as titles of columns: "90 % zeros" or "2× fewer MACs"."""
        return [f"{self.format_level(level)} {self.scale}" for level in self.levels]


def list_leagues() -> list[str]:
    """Names of the committed leagues."""
    return list_bundled_settings(FOLDER)


def read_league(name: str) -> League:
    """Read a committed league.

    Args:
        name: One of `list_leagues`.

    Returns:
        The protocol.

    Raises:
        SettingError: No league has this name, or its settings do not go together.
    """
    league = read_bundled_settings(FOLDER, League, name)
    if league.sweep_level not in league.levels:
        raise SettingError(f"{name}: sweep_level {league.sweep_level} is none of the levels {league.levels}")
    return league
