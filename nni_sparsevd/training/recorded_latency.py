"""Latencies that were measured on the way to a budget, and are not measured again in a run that is resumed."""

from collections.abc import Callable
from pathlib import Path
from typing import final

from accelerate import Accelerator
from torch import nn

from ..files import read_json, write_json

LATENCY_FILE = "latency.json"
"""All that was measured, in the run folder."""
MeasurePart = Callable[[nn.Module], float]
"""Measures the latency of an ordinary network as a part of the dense one's."""


@final
class RecordedLatency:
    """Measures a latency once for each place of a run; one process measures for all.

    No two measurements agree, and what is removed depends on them.  A resumed run that comes to the same place again,
    with the same network, reads from the file what was measured there.

    Args:
        measure: How to measure.
        path: The file.
        accelerator: The processes.
    """

    def __init__(self, measure: MeasurePart, path: Path, accelerator: Accelerator) -> None:
        self._measure, self._path, self._accelerator = measure, path, accelerator

    def measure_at(self, place: str, model: nn.Module) -> float:
        """Read, or measure and write, the latency of the network that a run has at a place.

        Args:
            place: A name of the place, such as "step 120, attempt 1".
            model: The ordinary network there.

        Returns:
            Its latency, as a part of the dense one's.
        """
        if self._accelerator.is_main_process:
            known = read_json(self._path) if self._path.exists() else {}
            if place not in known:
                write_json(self._path, {**known, place: self._measure(model)})
        self._accelerator.wait_for_everyone()
        return float(read_json(self._path)[place])
