"""What a command is: a name, what it says of itself, its arguments, and what it does."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt


@dataclass(frozen=True)
class Command:
    """One command of the program."""

    name: str
    summary: str
    """Its line in the list of commands."""
    description: str
    """The first paragraph of its own help."""
    add_arguments: Callable[[ArgumentParser], None]
    """Adds its arguments to a parser."""
    run: Callable[[Namespace, list[str]], None]
    """Does the work, with the parsed arguments and the command line that is recorded beside results."""
    read_defaults: Callable[[list[str]], dict[str, Any]] = lambda typed: {}
    """What the user typed -> defaults that come from a file, by the name of the argument."""
    after_interrupt: str = "stopped; the same command begins again"
    """How to go on after Ctrl-C, where the error does not say it itself."""

    def parser(self, typed: list[str]) -> ArgumentParser:
        """Build the parser of its arguments, which raises `ArgumentError` instead of ending the program.

        Args:
            typed: What the user typed after the name of the program.

        Returns:
            A parser that takes no flag for an abbreviation of another.
        """
        parser = self.empty_parser()
        self.add_arguments(parser)
        parser.set_defaults(self.read_defaults(typed))
        return parser

    def empty_parser(self) -> ArgumentParser:
        """Build a parser without arguments, which is enough to list the command."""
        return ArgumentParser(description=self.description, exit_on_error=False, allow_abbrev=False)


def add_calibration(parser: ArgumentParser) -> None:
    """Add how many photos int8 is calibrated with."""
    # `results.CALIBRATION` is the same number: to import it would take longer than the rest of the program's start.
    parser.add_argument(
        "--calibration", type=PositiveInt, default=200, help="training photos on which the ranges of int8 are measured"
    )


def add_level(parser: ArgumentParser) -> None:
    """Add which network of a run is meant."""
    parser.add_argument("--level", type=float, help="level of the budget; not set: the network that the run has chosen")
