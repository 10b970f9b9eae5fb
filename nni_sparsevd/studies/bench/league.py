"""A league: one committed file that says which network, which data, how long, how sparse, and who plays."""

from importlib.resources import files
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from ...errors import SettingError
from ...recipe import DataSettings, ModelSettings, Stage, list_bundled_settings, read_bundled_settings
from ...settings import Settings

FOLDER = files(__package__) / "leagues"


class League(Settings):
    """The protocol.  Every rival gets the same dense start, the same batches in the same order, the same steps."""

    title: str
    """Heading of its page."""
    about: str
    """A paragraph: what is compared, and within which budget."""
    kind: Literal["weights", "channels"]
    """Single weights, at a share of zeros; or whole channels, at times fewer MACs."""
    model: ModelSettings
    """Which network."""
    data: DataSettings
    """Which data; paths are below the folder that `bench` is given."""
    channels_last: bool = False
    """Lay images out channels last, for everyone: convolutions are then faster on a CPU."""
    dense: Stage
    """Training of the dense start, once a seed."""
    prune_epochs: PositiveInt
    """Epochs in which a rival decides; what it does not use, it has for tuning."""
    tune_epochs: PositiveInt
    """Epochs of fine-tuning with what is removed at zero."""
    levels: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Shares of zeros, or times fewer MACs."""
    sweep_level: PositiveFloat
    """The level at which each rival's learning rate is chosen, with the first seed, on held-out images."""
    rates: tuple[PositiveFloat, ...] = Field(min_length=1)
    """Peak learning rates of the sweep, the same for everyone."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)
    """Seeds of start, data order, hold-out and noise."""
    rivals: tuple[str, ...] = ()
    """Who plays, by name; nothing: everyone who can."""

    @property
    def epochs(self) -> int:
        """Epochs after the dense start, for everyone."""
        return self.prune_epochs + self.tune_epochs

    def called(self, level: float) -> str:
        """90 % or 2×."""
        return f"{100 * level:g} %" if self.kind == "weights" else f"{level:g}×"

    @property
    def scale(self) -> str:
        """What levels are levels of."""
        return "zeros" if self.kind == "weights" else "fewer MACs"


def list_leagues() -> list[str]:
    """Leagues that there are."""
    return list_bundled_settings(FOLDER)


def read_league(name: str) -> League:
    """Read the league `name`; raises `SettingError` where there is none, or its settings do not go together."""
    found = read_bundled_settings(FOLDER, League, name)
    if found.sweep_level not in found.levels:
        raise SettingError(f"{name}: sweep_level {found.sweep_level} is none of the levels {found.levels}")
    return found
