"""A moving average of a network over the steps of a stage, which takes the place of its last weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import Tensor, nn


@final
class WeightAverage:
    """timm's moving average of all parameters and buffers of a network; posteriors and gates are averaged like weights.

    Args:
        model: The network in training; its sizes must not change.
        decay: Part of the average that a step keeps. At first it is smaller, so that the beginning is forgotten:
            1 - steps^(-2/3), as timm warms it up.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._model = model
        self._average = ModelEmaV3(model, decay=decay, use_warmup=True)

    def update(self, steps_done: int) -> None:
        """Take the network as it is after a step into the average."""
        self._average.update(self._model, steps_done)

    def put_(self) -> None:
        """Give the network the average, in place."""
        self._model.load_state_dict(self._average.module.state_dict())

    @contextmanager
    def shown(self) -> Iterator[None]:
        """While entered, the network has the average; afterwards it is what it was."""
        before = {name: value.clone() for name, value in self._model.state_dict().items()}
        self.put_()
        try:
            yield
        finally:
            self._model.load_state_dict(before)

    def state(self) -> dict[str, Tensor]:
        """Name -> average, under the names of the network's state."""
        return dict(self._average.module.state_dict())

    def restore_(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` has returned."""
        self._average.module.load_state_dict(state)
