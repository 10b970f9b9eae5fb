"""The command line: `nni-sparsevd compress | report | check | list-models`."""

import shutil
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ActionParser, ArgumentParser, Namespace, set_parsing_settings  # noqa: F401
from pydantic import ValidationError

from . import recipe as recipes
from .errors import SettingError, SparseVDError
from .recipe import Recipe


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 our own error, 2 bad usage, 130 interrupted."""
    command = [Path(sys.argv[0]).name, *(sys.argv[1:] if arguments is None else arguments)]
    parsed = _parser().parse_args(arguments)
    chosen = parsed[parsed.subcommand]
    actions = {"compress": _compress, "report": _report, "check": _check, "list-models": _list_models}
    try:
        actions[parsed.subcommand](chosen, command)
    except SparseVDError as error:
        print(f"nni-sparsevd {parsed.subcommand}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"nni-sparsevd {parsed.subcommand}: {error or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="nni-sparsevd", description="Networks that learn which of their weights are noise.")
    commands = parser.add_subcommands()
    compress = ArgumentParser(description="Train, sparsify, shrink, check and report: a recipe in, a run folder out.")
    compress.add_argument("--recipe", type=Path, help="TOML or YAML file of the settings below; flags go before it")
    compress.add_argument("--out", type=Path, required=True, help="run folder to make")
    compress.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    compress.add_argument("--overwrite", action="store_true", help="delete the run folder first")
    compress.add_class_arguments(Recipe, None)
    commands.add_subcommand("compress", compress, help="recipe in, sparse and smaller network out")
    report = ArgumentParser(description="Draw the report of a run folder again.")
    report.add_argument("run", type=Path, help="run folder of compress")
    commands.add_subcommand("report", report, help="draw the report of a run again")
    check = ArgumentParser(description="Compare the masked and the shrunk network of a run on random inputs.")
    check.add_argument("run", type=Path, help="run folder of compress")
    commands.add_subcommand("check", check, help="is the small network of a run the masked one?")
    models = ArgumentParser(description="List the networks that compress knows.")
    models.add_argument("pattern", nargs="?", default="*", help="shell pattern, e.g. 'resnet*'")
    commands.add_subcommand("list-models", models, help="networks by name")
    return parser
