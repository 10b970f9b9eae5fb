"""`report` and `check`: what is done with the folder of a finished run."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..errors import SparseVDError
from .command import Command


def add_folder(parser: ArgumentParser, typed: list[str]) -> None:
    """Add the run folder."""
    parser.add_argument("run", type=Path, help="run folder of compress")


def add_folder_and_level(parser: ArgumentParser, typed: list[str]) -> None:
    """Add the run folder, and which of its networks."""
    add_folder(parser, typed)
    parser.add_argument("--level", type=float, help="level of the budget; not set: the network that the run has chosen")


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


REPORT = Command(
    name="report",
    summary="draw the report of a run folder again",
    description="Draw the report of a run folder again.",
    add_arguments=add_folder,
    run=run_report,
)
CHECK = Command(
    name="check",
    summary="compare the masked and the shrunk network of a run folder on random inputs",
    description="Compare the masked and the shrunk network of a run folder on random inputs.",
    add_arguments=add_folder_and_level,
    run=run_check,
)
