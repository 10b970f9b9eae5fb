"""What a command is: a name, what it says of itself, its arguments, and what it does."""

from collections.abc import Callable
from dataclasses import dataclass

from jsonargparse import ArgumentParser, Namespace


@dataclass(frozen=True)
class Command:
    """One command of the program."""

    name: str
    summary: str
    """Its line in the list of commands."""
    description: str
    """The first paragraph of its own help."""
    add_arguments: Callable[[ArgumentParser, list[str]], None]
    """Adds its arguments to a parser; it also gets what the user typed, for defaults that come from a file."""
    run: Callable[[Namespace, list[str]], None]
    """Does the work, with the parsed arguments and the command line that is recorded beside results."""
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
        self.add_arguments(parser, typed)
        return parser

    def empty_parser(self) -> ArgumentParser:
        """Build a parser without arguments, which is enough to list the command."""
        return ArgumentParser(description=self.description, exit_on_error=False, allow_abbrev=False)
