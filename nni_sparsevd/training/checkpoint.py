"""Where a run stands, in one file: model, optimizer, place.  Written whole or not at all, and never a pickle."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler as Scaler

from ..errors import FileFormatError, TrainingError
from ..files import load_tensors, save_tensors
from ..shrinking import Attributes, read_attributes, resize_
from .sharding import like, whole

KEY = "nni_sparsevd.checkpoint"


@dataclass(frozen=True)
class Place:
    """A stage of the run and the optimisation steps that it has done."""

    stage: str
    step: int
    per_epoch: int
    """Steps in an epoch, which more processes make fewer."""

    def among(self, per_epoch: int) -> int:
        """The step where as much of the stage is done with `per_epoch` steps an epoch; the same one as a rule."""
        epochs, rest = divmod(self.step, self.per_epoch)
        return epochs * per_epoch + rest * per_epoch // self.per_epoch


Scalars = dict[str, Any]
"""Numbers of an optimizer that are no tensors, some of them per group: JSON keeps every bit of them."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.  No random state: noise and order are functions of the place (see `schedule.derive_seed`)."""

    place: Place
    tensors: dict[str, Tensor]
    scalars: Scalars
    sizes: Attributes = field(default_factory=dict)
    """Attributes of the modules of a network that is shrunk while it trains, else none."""

    @property
    def running(self) -> Tensor:
        """The running sums of the epoch, over all processes, shape (3,)."""
        return self.tensors["running"]

    def restore_(self, model: nn.Module) -> None:
        """Put the network's state back, at the sizes that it had."""
        with _fitting():
            if self.sizes:
                resize_(model, self._under("model."), self.sizes, Path("the checkpoint"))
            model.load_state_dict(self._under("model."))

    def restore_optimizer_(self, optimizer: torch.optim.Optimizer, scaler: Scaler | None = None) -> None:
        """Put the optimizer's state back, or this process's part of it, and the scaler's."""
        with _fitting():
            optimizer.load_state_dict(self._optimizer_state(optimizer))
            if scaler is not None:
                scaler.load_state_dict(self.scalars["scaler"])

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def _optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, object]:
        state: dict[int, dict[str, Any]] = {}
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for name, value in [*self._under("optimizer.").items(), *self.scalars["state"].items()]:
            index, _, key = name.partition(".")
            mine = like(value, parameters[int(index)]) if isinstance(value, Tensor) else value
            state.setdefault(int(index), {})[key] = mine
        groups = optimizer.state_dict()["param_groups"]
        for index, (group, values) in enumerate(zip(groups, self.scalars["groups"], strict=True)):
            group.update(values, **self._under(f"group.{index}."))
        return {"state": state, "param_groups": groups}


@contextmanager
def _fitting() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, KeyError, IndexError, FileFormatError) as error:
        raise TrainingError(f"the checkpoint does not fit the network of the recipe: {error}") from None


def take_checkpoint(
    place: Place,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    running: Tensor,
    scaler: Scaler | None = None,
    *,
    resized: bool = False,
) -> Checkpoint:
    """Where the run stands now; every process has to ask, for each may hold a part of the optimizer's state.

    A network that is `resized` has, or may have, other sizes than the recipe gives it.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    moments = optimizer.state_dict()["state"]
    state = {f"{i}.{key}": whole(value) for i, values in moments.items() for key, value in values.items()}
    tensors |= {f"optimizer.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    for index, group in enumerate(optimizer.param_groups):
        tensors |= {f"group.{index}.{key}": value for key, value in group.items() if isinstance(value, Tensor)}
    tensors["running"] = running
    scalars: Scalars = {
        "state": {name: value for name, value in state.items() if not isinstance(value, Tensor)},
        # some optimizers count their steps in their groups, as a number or a tensor; lists there are settings
        "groups": [{k: v for k, v in g.items() if isinstance(v, int | float)} for g in optimizer.param_groups],
        "scaler": {} if scaler is None else scaler.state_dict(),
    }
    return Checkpoint(place, tensors, scalars, read_attributes(model) if resized else {})


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Replace the one at `path`."""
    header = {"place": asdict(checkpoint.place), "scalars": checkpoint.scalars, "sizes": checkpoint.sizes}
    save_tensors(checkpoint.tensors, path, {KEY: json.dumps(header)})


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Read the checkpoint at `path`, or None where there is none; raises `FileFormatError` for a damaged one."""
    if not path.exists():
        return None
    tensors, metadata = load_tensors(path)
    try:
        header = json.loads(metadata[KEY])
        return Checkpoint(Place(**header["place"]), tensors, header["scalars"], header.get("sizes", {}))
    except (KeyError, TypeError, json.JSONDecodeError):
        raise FileFormatError(f"{path}: not a checkpoint of this program") from None
