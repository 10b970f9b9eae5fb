"""Where a run stands, in one file: network, optimizer, place. Whole or absent, and never a pickle.

docs/files.md describes the file. It has no state of a random generator: noise, order and augmentation are functions of
the place (`schedule.derive_seed`).
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from ..errors import FileFormatError, TrainingError
from ..files import load_tensors, save_tensors
from ..shrinking import Attributes, read_attributes, resize_
from .sharding import gather_whole, shard_like

CHECKPOINT_FILE = "checkpoint.safetensors"
"""Name of the file in the run folder."""
KEY = "nni_sparsevd.checkpoint"
"""Metadata key of the header, a JSON object."""

Scalars = dict[str, Any]
"""Numbers that are no tensors. JSON keeps every bit of them.

`state`: "INDEX.KEY" -> number, of each parameter; `groups`: a table for each group; `scaler`: the loss scaler's state.
"""


@dataclass(frozen=True)
class Place:
    """A stage of the run, and the optimization steps that it has done."""

    stage: str
    step: int
    per_epoch: int
    """Steps in an epoch; with more processes they are fewer."""

    def step_at(self, per_epoch: int) -> int:
        """The step at which the same part of the stage is done when an epoch has `per_epoch` steps."""
        epochs, rest = divmod(self.step, self.per_epoch)
        return epochs * per_epoch + rest * per_epoch // self.per_epoch


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file."""

    place: Place
    tensors: dict[str, Tensor]
    scalars: Scalars
    sizes: Attributes = field(default_factory=dict)
    """Plain attributes of every module, where the network may have been shrunk while it trained; else empty."""

    @property
    def running(self) -> Tensor:
        """Sums over the epoch so far and over all processes: loss, correct answers, images."""
        return self.tensors["running"]

    @property
    def average(self) -> dict[str, Tensor]:
        """The moving average of the network's state, where the stage has one."""
        return self._select("average.")

    def restore_(self, model: nn.Module) -> None:
        """Put the network's state back, at the sizes that it had.

        Raises:
            TrainingError: The checkpoint is that of another network.
        """
        with _naming_the_mismatch():
            # State of another size does not load, and the recipe makes the network at its first size.
            if self.sizes:
                resize_(model, self._select("model."), self.sizes, Path("the checkpoint"))
            model.load_state_dict(self._select("model."))

    def restore_optimizer_(self, optimizer: torch.optim.Optimizer, scaler: GradScaler | None = None) -> None:
        """Put the optimizer's state back, or this process's shard of it, and the loss scaler's.

        Raises:
            TrainingError: The checkpoint is that of another optimizer or of other parameters.
        """
        with _naming_the_mismatch():
            optimizer.load_state_dict(self._make_optimizer_state(optimizer))
            if scaler is not None:
                scaler.load_state_dict(self.scalars["scaler"])

    def _select(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def _make_optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, object]:
        """The state dict that `optimizer` loads: its own settings, and what the checkpoint holds of the rest."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for name, value in [*self._select("optimizer.").items(), *self.scalars["state"].items()]:
            index, _, key = name.partition(".")
            shard = shard_like(value, parameters[int(index)]) if isinstance(value, Tensor) else value
            state.setdefault(int(index), {})[key] = shard
        # Settings of the groups come from the recipe: the optimizer of a resumed run has them already.
        groups = optimizer.state_dict()["param_groups"]
        for index, (group, scalars) in enumerate(zip(groups, self.scalars["groups"], strict=True)):
            group.update(scalars, **self._select(f"group.{index}."))
        return {"state": state, "param_groups": groups}


@contextmanager
def _naming_the_mismatch() -> Iterator[None]:
    """Turn what torch raises about state that does not fit into our own error."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError, IndexError, FileFormatError) as error:
        raise TrainingError(f"the checkpoint does not fit the network of the recipe: {error}") from None


def take_checkpoint(
    place: Place,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    running: Tensor,
    scaler: GradScaler | None = None,
    *,
    resized: bool = False,
    average: Mapping[str, Tensor] | None = None,
) -> Checkpoint:
    """Make a checkpoint of a run; every process has to call it, for each may hold a shard of the optimizer's state.

    Args:
        place: Stage and step.
        model: The whole network.
        optimizer: The optimizer of its parameters, or of their shards.
        running: Sums over the epoch so far and over all processes, shape (3,).
        scaler: The loss scaler (float16), if there is one.
        resized: Whether the network may have other sizes than the recipe gives it.
        average: The moving average of the network's state, where the stage has one.

    Returns:
        A checkpoint that shares memory with the network.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in (average or {}).items()}
    state_scalars = {}
    for index, moments in optimizer.state_dict()["state"].items():
        for key, shard in moments.items():
            value = gather_whole(shard)
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                state_scalars[f"{index}.{key}"] = value
    group_scalars = []
    for index, group in enumerate(optimizer.param_groups):
        tensor_entries, number_entries = _split_group(group)
        tensors |= {f"group.{index}.{key}": value for key, value in tensor_entries.items()}
        group_scalars.append(number_entries)
    tensors["running"] = running
    scaler_state = {} if scaler is None else scaler.state_dict()
    scalars: Scalars = {"state": state_scalars, "groups": group_scalars, "scaler": scaler_state}
    return Checkpoint(place, tensors, scalars, read_attributes(model) if resized else {})


def _split_group(group: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, int | float]]:
    """(tensors, numbers) of a group: some optimizers count their steps there, as either.

    Lists and strings are passed over: they are parameters and settings, which the recipe gives again.
    """
    tensors, numbers = {}, {}
    for key, value in group.items():
        if isinstance(value, Tensor):
            tensors[key] = value
        elif isinstance(value, int | float):
            numbers[key] = value
    return tensors, numbers


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, in place of the one that `path` may hold.

    Raises:
        FileFormatError: The disk is full, or does not let us write.
    """
    header = {"place": asdict(checkpoint.place), "scalars": checkpoint.scalars, "sizes": checkpoint.sizes}
    save_tensors(checkpoint.tensors, path, {KEY: json.dumps(header)})


def read_checkpoint(path: Path) -> Checkpoint | None:
    """Read the checkpoint at `path`; None where there is no file.

    Raises:
        FileFormatError: The file is damaged, or no checkpoint.
    """
    if not path.exists():
        return None
    tensors, metadata = load_tensors(path)
    try:
        header = json.loads(metadata[KEY])
        return Checkpoint(Place(**header["place"]), tensors, header["scalars"], header.get("sizes", {}))
    except (KeyError, TypeError, json.JSONDecodeError):
        raise FileFormatError(f"{path}: not a checkpoint of this program") from None
