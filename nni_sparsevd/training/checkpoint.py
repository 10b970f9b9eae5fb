"""Where a run stands, in one file: model, optimizer, place.  Written whole or not at all, and never a pickle."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import FileFormatError, TrainingError
from ..files import load_tensors, save_tensors

KEY = "nni_sparsevd.checkpoint"


@dataclass(frozen=True)
class Place:
    """A stage of the run and the optimisation steps that it has done."""

    stage: str
    step: int


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds.  No random state: noise and order are functions of the place (see `schedule.seed_for`)."""

    place: Place
    tensors: dict[str, Tensor]

    def restore_(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Tensor:
        """Put the state back; returns the running sums of the epoch, shape (3,)."""
        own = self._under("model.")
        try:
            model.load_state_dict(own)
            if optimizer is not None:
                optimizer.load_state_dict(self._optimizer_state(optimizer))
        except (RuntimeError, ValueError, KeyError) as error:
            raise TrainingError(f"the checkpoint does not fit the network of the recipe: {error}") from None
        return self.tensors["running"]

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def _optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, object]:
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in self._under("optimizer.").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        return {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}


def write(path: Path, place: Place, model: nn.Module, optimizer: torch.optim.Optimizer, running: Tensor) -> None:
    """Replace the checkpoint at `path`."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            tensors[f"optimizer.{index}.{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    tensors["running"] = running
    save_tensors(tensors, path, {KEY: json.dumps(asdict(place))})


def read(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, or None where there is none; raises `FileFormatError` for a damaged one."""
    if not path.exists():
        return None
    tensors, metadata = load_tensors(path)
    try:
        return Checkpoint(Place(**json.loads(metadata[KEY])), tensors)
    except (KeyError, TypeError, json.JSONDecodeError):
        raise FileFormatError(f"{path}: not a checkpoint of this program") from None
