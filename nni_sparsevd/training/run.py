"""What all stages of a run share."""

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from ..data import DataSets
from ..recipe import Recipe
from .checkpoint import CHECKPOINT_FILE
from .metrics import Metrics


@dataclass(frozen=True)
class Run:
    """A recipe under way in a folder: its data, its processes and its record."""

    recipe: Recipe
    folder: Path
    data: DataSets
    accelerator: Accelerator
    metrics: Metrics

    @property
    def checkpoint(self) -> Path:
        """The file that says where the run stands."""
        return self.folder / CHECKPOINT_FILE
