"""Who plays.  A new rival is one entry in one of these tables."""

from ....errors import SettingError
from ..league import League
from . import nni, nni_channels, ours, ours_channels, plain, torch_pruning
from .entry import Decide, Pruned, Rival

WEIGHTS: dict[str, Rival] = {**ours.RIVALS, **plain.RIVALS, **nni.RIVALS}
CHANNELS: dict[str, Rival] = {**ours_channels.RIVALS, **nni_channels.RIVALS, **torch_pruning.RIVALS}
TABLES = {"weights": WEIGHTS, "channels": CHANNELS}

__all__ = ["TABLES", "Decide", "Pruned", "Rival", "rivals_of"]


def rivals_of(league: League) -> dict[str, Rival]:
    """Those that play in `league`; raises `SettingError` for a name that nobody has."""
    there = TABLES[league.kind]
    unknown = [name for name in league.rivals if name not in there]
    if unknown:
        raise SettingError(f"rivals: nobody is named {', '.join(unknown)}; there are {', '.join(there)}")
    return {name: there[name] for name in league.rivals or there}
