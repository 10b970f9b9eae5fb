"""The rivals.  A new rival is one entry in one of these tables."""

from ....errors import SettingError
from ..league import League
from . import modelopt, nni, nni_channels, ours, ours_channels, plain, torch_pruning
from .entry import Decide, Pruned, Rival

WEIGHTS: dict[str, Rival] = {**ours.RIVALS, **plain.RIVALS, **nni.RIVALS}
CHANNELS: dict[str, Rival] = {
    **ours_channels.RIVALS,
    **nni_channels.RIVALS,
    **torch_pruning.RIVALS,
    **modelopt.RIVALS,
}
TABLES = {"weights": WEIGHTS, "channels": CHANNELS}
"""Kind of a league -> name of a rival -> the rival."""

__all__ = ["TABLES", "Decide", "Pruned", "Rival", "rivals_of"]


def rivals_of(league: League) -> dict[str, Rival]:
    """The rivals of a league: those that it lists, or all of its kind where it lists none.

    Args:
        league: The protocol.

    Returns:
        Name -> rival, in the league's order.

    Raises:
        SettingError: The league lists a name that no rival of its kind has.
    """
    known = TABLES[league.kind]
    unknown = [name for name in league.rivals if name not in known]
    if unknown:
        raise SettingError(f"rivals: no rival is named {', '.join(unknown)}; there are {', '.join(known)}")
    return {name: known[name] for name in league.rivals or known}
