"""A small network of a finished run, exported; one of integers is scored on the test photos, in its runtime."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ..export import FORMATS, Comparison, Quantization, check_format, export, open_exported
from ..files import read_json, write_json
from ..recipe import RECIPE_FILE, read_recipe
from ..report import write_int8_remark, write_report
from ..storage import load
from .run_data import CALIBRATION, choose_calibration, read_run_data
from .run_files import FILES, find_network_folder, read_result
from .runtime_scores import Candidate, RuntimeScore, score_candidates


@dataclass(frozen=True)
class RunExport:
    """A small network of a run, exported."""

    comparison: Comparison
    """The file against the network."""
    test: RuntimeScore | None = None
    """Of a file of integers: how it does on the test photos, in its runtime."""
    float_accuracy: float | None = None
    """The accuracy of the network on the same photos, in float32."""
    level: float | None = None
    """The level of the budget whose network it is; None where the run has no budget."""
    is_tuned: bool = False
    """Whether the network was tuned for integers (`quantize.aware`)."""

    def to_dict(self) -> dict[str, object]:
        """Give all that is known, ready for JSON."""
        test = self.test and {**self.test.to_dict(), "float_accuracy": self.float_accuracy}
        return {**self.comparison.to_dict(), "test": test, "level": self.level}

    def __str__(self) -> str:
        if self.test is None or self.float_accuracy is None:
            return str(self.comparison)
        scores = (
            f"{self.comparison.format}: {self.comparison.bytes:,} bytes; {100 * self.test.accuracy:.2f} % of "
            f"{self.test.images:,} test photos are named right (float32 {100 * self.float_accuracy:.2f} %), "
            f"{100 * self.test.agreement:.2f} % as the float32 network names them"
        )
        remark = write_int8_remark("The file", self.test.to_dict(), self.float_accuracy, is_tuned=self.is_tuned)
        return f"{scores}\n{remark}" if remark else scores


def export_run(
    folder: Path,
    path: Path,
    *,
    level: float | None = None,
    dynamic_batch: bool = True,
    int8: bool = False,
    calibration: int = CALIBRATION,
) -> RunExport:
    """Export a small network of a run folder, and add the comparison to exports.json and to the report there.

    Args:
        folder: The folder of a finished run.
        path: The file to write; its suffix chooses the runtime, as in `export`.
        level: The level of the budget whose network is exported; None: the network that the run has chosen.
        dynamic_batch: Whether the exported network accepts batches of any size, as far as the runtime can.
        int8: Make weights and activations integers of eight bits, and score the file on the test photos.
        calibration: Training photos for that, chosen by the seed of the run.

    Returns:
        The largest differences between the small network and the exported file, and what one of integers scores.

    Raises:
        FileFormatError: The run is not finished, or a file of it is damaged.
        SettingError: The suffix or the level is not known, the runtime is not installed, or it has no int8.
        ModelError: The runtime cannot express the network, or the exported file computes something else.
        DataError: The photos of the run, which int8 needs, are no longer there.
    """
    network_folder = find_network_folder(folder, level)
    result = read_result(network_folder)
    small = load(network_folder / FILES["shrunk"])
    example = torch.zeros(1, *result["input"])
    if int8:
        check_format(path, int8=True)  # before photos are read
        exported = _export_int8(folder, small, path, example, dynamic_batch, calibration, result["seed"])
    else:
        exported = RunExport(export(small, path, example, dynamic_batch=dynamic_batch))
    exported = replace(exported, level=result["level"])
    record = folder / "exports.json"
    rows = read_json(record) if record.exists() else {}
    write_json(record, {**rows, path.name: exported.to_dict()})
    write_report(folder)
    return exported


def _export_int8(
    folder: Path, small: nn.Module, path: Path, example: Tensor, dynamic_batch: bool, calibration: int, seed: int
) -> RunExport:
    """Calibrate, write and score."""
    is_tuned = read_recipe(folder / RECIPE_FILE).quantize.aware
    data = read_run_data(folder)
    quantization = Quantization(choose_calibration(data, calibration, seed))
    comparison = export(small, path, example, dynamic_batch=dynamic_batch, quantization=quantization)
    single = not (dynamic_batch and FORMATS[path.suffix].dynamic)
    candidates = {"int8": Candidate(open_exported(path), "small", single), "float32": Candidate(small, "small", False)}
    scores = score_candidates(candidates, {"small": small}, data)
    return RunExport(comparison, scores["int8"], scores["float32"].accuracy, is_tuned=is_tuned)
