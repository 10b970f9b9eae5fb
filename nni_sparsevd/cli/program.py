"""The program: it finds the command, runs it, and turns errors into one line and an exit code."""

import os
import sys
from importlib.metadata import version

from jsonargparse import ArgumentError, ArgumentParser

from ..errors import SettingError, SparseVDError
from .command import Command
from .compress import COMPRESS
from .export import EXPORT
from .messages import shorten, suggest
from .networks import LIST_MODELS
from .predict import PREDICT
from .run_folders import CHECK, MEASURE, REPORT
from .studies import BENCH, REPRODUCE, ZOO

TORCHRUN_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""The environment variable by which torchrun tells a process where to leave an error for its report."""
COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (COMPRESS, REPORT, MEASURE, CHECK, LIST_MODELS, ZOO, REPRODUCE, BENCH, EXPORT, PREDICT)
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: What the user typed after the name of the program; by default that of this process.

    Returns:
        The exit code: 0 done, 1 failed with a message, 2 bad usage, 130 interrupted, 141 where nobody reads the output.
    """
    typed = sys.argv[1:] if arguments is None else arguments
    try:
        parsed = _build_parser(typed).parse_args(typed)
        COMMANDS[parsed.subcommand].run(parsed[parsed.subcommand], ["nni-sparsevd", *typed])
        sys.stdout.flush()  # here, where an error can still be told
    except (ArgumentError, SettingError) as error:
        return _fail(suggest(shorten(str(error)), COMMANDS, typed), 2, error)
    except SparseVDError as error:
        return _fail(str(error), 1, error)
    except KeyboardInterrupt as error:
        return _fail(str(error) or _say_how_to_go_on(typed), 130, error)
    except OSError as error:  # disk, memory, permissions: the user needs the file's name, not a traceback
        if isinstance(error, BrokenPipeError) and _drop_unread_output():
            return 141
        return _fail(f"{error.filename or 'input/output'}: {error.strerror or error}", 1, error)
    return 0


def _drop_unread_output() -> bool:
    """Whether the reader of the output, such as `head`, has gone; what Python holds of the output is then dropped."""
    try:
        print(flush=True)  # the error may be of another pipe
    except BrokenPipeError:
        # Else Python would try again as it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _say_how_to_go_on(typed: list[str]) -> str:
    return COMMANDS[typed[0]].after_interrupt if typed and typed[0] in COMMANDS else "stopped"


def _fail(message: str, code: int, error: BaseException) -> int:
    """Say what went wrong, once for all processes of a torchrun; gives the exit code."""
    # 1. Most errors meet all processes, and the first process prints them.
    # 2. An error may also meet another process alone, or end it before the first one has come so far. torchrun's own
    #    report has a place for that.
    # 3. An interruption reaches all processes.
    is_first = int(os.environ.get("RANK", 0)) == 0
    if is_first or TORCHRUN_ERROR_FILE not in os.environ:
        print(f"nni-sparsevd: {message}", file=sys.stderr)
    elif not isinstance(error, KeyboardInterrupt):
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)
    return code


def _build_parser(typed: list[str]) -> ArgumentParser:
    """All commands by name, and the arguments of the one that was typed.

    The others stay without arguments: building those of `compress` alone takes longer than the rest of the program's
    start.
    """
    parser = ArgumentParser(
        prog="nni-sparsevd",
        description="Networks that learn which of their weights are noise.",
        exit_on_error=False,
        allow_abbrev=False,
        version=version("nni_sparsevd"),
    )
    subcommands = parser.add_subcommands()
    for name, command in COMMANDS.items():
        subparser = command.parser(typed) if typed[:1] == [name] else command.empty_parser()
        subcommands.add_subcommand(name, subparser, help=command.summary)
    return parser
