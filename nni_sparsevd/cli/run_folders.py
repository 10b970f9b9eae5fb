"""`report`, `measure` and `check`: what is done with the folder of a finished run."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..errors import SparseVDError
from .command import Command, add_calibration, add_level


def add_folder(parser: ArgumentParser) -> None:
    """Add the run folder."""
    parser.add_argument("run", type=Path, help="run folder of compress")


def add_folder_and_level(parser: ArgumentParser) -> None:
    """Add the run folder, and which of its networks."""
    add_folder(parser)
    add_level(parser)


def run_report(arguments: Namespace, command_line: list[str]) -> None:
    """Draw the report and print its path."""
    from ..report import write_report

    print(write_report(arguments.run))


def run_check(arguments: Namespace, command_line: list[str]) -> None:
    """Compare the two networks of the folder; raises `SparseVDError` when they differ."""
    from ..results import check_run

    result = check_run(arguments.run, arguments.level)
    print(result)
    if not result.ok:
        raise SparseVDError(f"{arguments.run}: small.safetensors does not compute what masked.safetensors does")


def add_measuring(parser: ArgumentParser) -> None:
    """Add the run folder, and how int8 is calibrated."""
    add_folder(parser)
    add_calibration(parser)


def run_measure(arguments: Namespace, command_line: list[str]) -> None:
    """Measure the networks of the folder in every runtime that is installed, and print a line for each."""
    from ..results import measure_run

    measure_run(arguments.run, command_line, calibration=arguments.calibration, report=print)


REPORT = Command(
    name="report",
    summary="draw the report of a run folder again",
    description="Draw the report of a run folder again.",
    add_arguments=add_folder,
    run=run_report,
)
MEASURE = Command(
    name="measure",
    summary="bytes, milliseconds and accuracy of a run's networks in every runtime that is installed, int8 too",
    description=(
        "Measure the dense and the small networks of a run folder in PyTorch, ONNX Runtime, ExecuTorch and LiteRT, as "
        "far as they are installed, in float32 and int8; the report of the folder shows the table."
    ),
    add_arguments=add_measuring,
    run=run_measure,
)
CHECK = Command(
    name="check",
    summary="compare the masked and the shrunk network of a run folder on random inputs",
    description="Compare the masked and the shrunk network of a run folder on random inputs.",
    add_arguments=add_folder_and_level,
    run=run_check,
)
