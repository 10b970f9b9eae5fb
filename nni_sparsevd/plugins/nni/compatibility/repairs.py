"""The table of repairs of NNI, and the two functions that apply and undo them.

A repair is one small function with its reason, applied only where the installed versions need it.  Importing the
plugin only fills the tables in this file; NNI itself is changed by `enable()` and restored by `disable()`.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from ....errors import SettingError
from ...patching import Patch

Change = Callable[[Patch], None]
"""Changes NNI through the patch that it is given, so that the change can be undone."""


@dataclass(frozen=True)
class Repair:
    """What is broken, since which release, and what mends it."""

    name: str
    since: str
    reason: str
    needed: Callable[[], bool]
    apply: Change


REPAIRS: dict[str, Repair] = {}
"""All repairs by name, in the order in which they are applied."""
_ADDITIONS: list[Change] = []
"""What the plugin enters in NNI's own tables: the pruner's class and the ways to apply its masks."""

_applied: dict[str, Patch] = {}
"""The repairs in force, in the order in which they were applied."""
_added: list[Patch] = []
"""The additions in force: empty as long as nobody has enabled the plugin."""


def repair(since: str, needed: Callable[[], bool] = lambda: True) -> Callable[[Change], Change]:
    """Enter a function in the table of repairs: its name is the repair's name, its docstring the reason.

    Args:
        since: The release that broke NNI, or the release of NNI that has the fault.
        needed: Whether the installed versions are affected.
    """

    def register(function: Change) -> Change:
        name: str = getattr(function, "__name__", "")
        reason = " ".join((function.__doc__ or "").split())
        REPAIRS[name] = Repair(name, since, reason, needed, function)
        return function

    return register


def addition(function: Change) -> Change:
    """Enter a function among the additions, which are in force whenever the plugin is enabled."""
    _ADDITIONS.append(function)
    return function


def enable(*, leave: Collection[str] = ()) -> tuple[str, ...]:
    """Make NNI 3.0, installed as it is, work with the installed PyTorch, Lightning and Transformers.

    NNI is changed in memory only.  Each repair is applied only if the installed versions need it, and
    `SparseVDPruner` becomes available as `nni.compression.pruning.SparseVDPruner`.  It is safe to call `enable` again.

    The first `SparseVDPruner` of a process calls `enable()` if nobody has.  A script that uses NNI's own pruners alone,
    or wants a repair left out, has to call it.

    Args:
        leave: Names of repairs that are not to be applied.

    Returns:
        The names of all repairs in force.

    Raises:
        SettingError: A name in `leave` is no repair.
    """
    unknown = set(leave) - set(REPAIRS)
    if unknown:
        raise SettingError(
            f"enable(leave=...): {', '.join(sorted(unknown))} is no repair; known are {', '.join(REPAIRS)}"
        )
    if not _added:
        _added.append(Patch())
        for add in _ADDITIONS:
            add(_added[0])
    for name, entry in REPAIRS.items():
        if name not in leave and name not in _applied and entry.needed():
            _applied[name] = Patch()
            entry.apply(_applied[name])
    return tuple(_applied)


def enable_once() -> None:
    """Call `enable()` unless it is in force already, perhaps with repairs that the user left out."""
    if not _added:
        enable()


def disable() -> None:
    """Undo `enable()`: every attribute and every table of NNI is what was installed.

    A `SparseVDPruner` that is still learning cannot go on afterwards.  One that has decided is an ordinary pruner of
    NNI and can.  The next `SparseVDPruner` enables the plugin again.
    """
    # Two repairs may change one attribute, so the later one is undone first.
    for name in reversed(list(_applied)):
        _applied.pop(name).undo()
    while _added:
        _added.pop().undo()
