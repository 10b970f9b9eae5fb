"""A repair of NNI: one small function with its reason, applied only where it is needed, and undone again on request."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from ....errors import SettingError
from ...patching import Patch


@dataclass(frozen=True)
class Repair:
    """What is broken, since which release, and what mends it."""

    name: str
    since: str
    reason: str
    needed: Callable[[], bool]
    apply: Callable[[Patch], None]


REPAIRS: dict[str, Repair] = {}
_applied: dict[str, Patch] = {}


def repair(since: str, needed: Callable[[], bool] = lambda: True) -> Callable[[Callable[[Patch], None]], Any]:
    """Enter a function as a repair: its name is the repair's, its docstring the reason.

    `since` names the release that broke it; `needed` says whether the installed versions are affected.
    """

    def register(function: Callable[[Patch], None]) -> Callable[[Patch], None]:
        name = function.__name__
        REPAIRS[name] = Repair(name, since, " ".join((function.__doc__ or "").split()), needed, function)
        return function

    return register


def enable(*, leave: Collection[str] = ()) -> tuple[str, ...]:
    """Make NNI 3.0, installed as it is, work with the installed PyTorch; returns the names of the repairs in force.

    Repairs that the installed versions do not need, and those in `leave`, are not applied.  Safe to call again.

    Raises `SettingError` for a name in `leave` that is no repair.
    """
    unknown = set(leave) - set(REPAIRS)
    if unknown:
        raise SettingError(
            f"enable(leave=...): {', '.join(sorted(unknown))} is no repair; known are {', '.join(REPAIRS)}"
        )
    for name, one in REPAIRS.items():
        if name not in leave and name not in _applied and one.needed():
            _applied[name] = Patch()
            one.apply(_applied[name])
    return tuple(_applied)


def disable() -> None:
    """Undo `enable`: NNI is what was installed."""
    for name in reversed(list(_applied)):
        _applied.pop(name).undo()
