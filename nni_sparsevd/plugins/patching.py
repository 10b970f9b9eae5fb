"""Changing a host toolkit in memory so that every change can be undone: `Patch`."""

from types import TracebackType
from typing import Any, Self

_ABSENT = object()
"""Stands for the value of an attribute or an entry that was not there before the patch set it."""


class Patch:
    """A set of changes to somebody else's modules, classes and dictionaries, with the memory of what was there before.

    A plugin makes all its changes to a host through patches.  It keeps the patches, and undoes them on request: the
    host is then exactly what was installed.

        patch = Patch()
        patch.set(host.Trainer, "step", our_step)  # an attribute of a module, a class or an object
        patch.set(host.REGISTRY, "ours", Layer)  # an entry of a dictionary
        patch.undo()

    As a context manager a patch undoes itself at the end of the block.

    Two patches of the same attribute have to be undone in the opposite order, the later one first: each of them puts
    back what it met.
    """

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Replace one attribute or entry, or add it.

        Args:
            owner: A module, a class, an object that has a `__dict__`, or a dictionary.
            name: Name of the attribute, or key of the entry.
            value: The new value.  On a class it is stored as it is, so a property has to be passed as a property.
        """
        # An attribute is looked up in the owner's own dictionary, not with getattr, for two reasons.
        # 1. Inherited attributes are absent here: undoing must delete the override, not copy the base's attribute.
        # 2. Properties, static methods and class methods must come back as the descriptors that they are.
        entries = owner if isinstance(owner, dict) else vars(owner)
        self._before.append((owner, name, entries.get(name, _ABSENT)))
        _put(owner, name, value)

    def undo(self) -> None:
        """Put back everything that was there before, the last change first.  A second call does nothing."""
        while self._before:
            _put(*self._before.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()


def _put(owner: Any, name: str, value: Any) -> None:
    """Set an attribute or entry, or delete it where `value` is `_ABSENT`."""
    if isinstance(owner, dict):
        if value is _ABSENT:
            del owner[name]
        else:
            owner[name] = value
    elif value is _ABSENT:
        delattr(owner, name)
    else:
        setattr(owner, name, value)
