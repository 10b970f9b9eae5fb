"""Ctrl-C and the termination signal, turned into a flag."""

import signal
from types import FrameType
from typing import final


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or a termination signal has stopped a run; its checkpoint is written."""


@final
class SignalFlag:
    """While entered, the first SIGINT or SIGTERM only sets `raised`, so that a step can be finished and saved."""

    def __init__(self) -> None:
        self.raised = False

    def __enter__(self) -> "SignalFlag":
        self._previous = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # A second signal does not wait: the step may hang.
        if self.raised:
            raise KeyboardInterrupt
        self.raised = True
