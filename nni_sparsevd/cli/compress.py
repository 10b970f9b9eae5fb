"""`compress`: settings in, a run folder with the smaller network out."""

import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn, get_args

from jsonargparse import ArgumentParser, Namespace

from ..errors import TrainingError
from ..recipe import RECIPE_FILE, BudgetKind, Recipe, read_recipe
from ..settings import make_settings
from .command import Command


def add_arguments(parser: ArgumentParser) -> None:
    """Add the run folder's flags and one flag a setting of the recipe."""
    parser.add_argument("--recipe", type=Path, help="TOML or YAML file of the settings below; flags override it")
    parser.add_argument("--out", type=Path, required=True, help="run folder to make")
    parser.add_argument("--resume", action="store_true", help="go on with an interrupted run and its settings")
    parser.add_argument("--overwrite", action="store_true", help="delete the run folder first")
    parser.add_class_arguments(Recipe, None)


def read_defaults(typed: list[str]) -> dict[str, Any]:
    """Settings of the file that `--recipe` names, under the names of their flags; empty without such a file."""
    path = _recipe_path(typed)
    if path is None:
        return {}
    defaults: dict[str, Any] = {}
    for table, value in read_recipe(path).model_dump(mode="json").items():
        if isinstance(value, dict):
            defaults |= {f"{table}.{key}": setting for key, setting in value.items()}
        else:
            defaults[table] = value
    return defaults


def _recipe_path(typed: list[str]) -> Path | None:
    """The file after `--recipe`; a run that goes on has one of its own in its folder."""
    path = _find_path("--recipe", typed)
    out = _find_path("--out", typed)
    if path is None and "--resume" in typed and out is not None and (out / RECIPE_FILE).exists():
        return out / RECIPE_FILE
    return path


def _find_path(flag: str, typed: list[str]) -> Path | None:
    """The path after a flag, in either spelling; the last one counts, as for every flag."""
    path = None
    for place, argument in enumerate(typed):
        if argument == flag and place + 1 < len(typed):
            path = Path(typed[place + 1])
        if argument.startswith(f"{flag}="):
            path = Path(argument.partition("=")[2])
    return path


def _read_flags(typed: list[str]) -> Namespace:
    """The settings that flags give, without those of the recipe's file."""
    # Parsed, for a flag may set a whole table: --posterior={granularity: gate}.
    return COMPRESS.parser(typed).parse_args(typed, defaults=False)


def _asks_for_granularity(typed: list[str], flags: Namespace) -> bool:
    """Whether a flag or the recipe's file says what has a posterior."""
    path = _recipe_path(typed)
    if path is not None and "granularity" in read_recipe(path).posterior.model_fields_set:
        return True
    return "posterior.granularity" in flags


def _let_flags_choose_budget_(budget: dict[str, Any], flags: Namespace) -> None:
    """Take the recipe's budget back, in place, where a flag gives one of another kind: a run has only one."""
    chosen = {kind for kind in get_args(BudgetKind) if flags.get(f"budget.{kind}") is not None}
    if chosen:
        budget |= dict.fromkeys(set(get_args(BudgetKind)) - chosen)


def run(arguments: Namespace, command_line: list[str]) -> None:
    """Train, sparsify, shrink, check and report.

    Raises:
        KeyboardInterrupt: On Ctrl-C; the message says how to go on, whatever was under way.
    """
    began = time.time()
    try:
        _run(arguments, command_line)
    except KeyboardInterrupt as error:
        # While a stage trains, the error says itself what was saved.
        raise KeyboardInterrupt(str(error) or _say_how_to_go_on(arguments, began)) from None


def _say_how_to_go_on(arguments: Namespace, began: float) -> str:
    """What somebody who has stopped the program outside of a stage can do next."""
    recipe_file = arguments.out / RECIPE_FILE
    # A run that is to be overwritten is still the old one until the data have been read.
    is_this_run = recipe_file.exists() and (arguments.resume or recipe_file.stat().st_mtime >= began)
    if not is_this_run:
        return "stopped before anything was written; the same command begins again"
    if not (arguments.out / "checkpoint.safetensors").exists():
        return "stopped before the first checkpoint; go on with --resume"
    return "stopped; what was trained is kept, go on with --resume"


def _run(arguments: Namespace, command_line: list[str]) -> None:
    from accelerate import PartialState

    from ..export import LatencyMeter
    from ..report import write_report
    from ..results import finish_run
    from ..training import compress, keep_freed_memory, show_phase

    keep_freed_memory()
    values = arguments.as_dict()
    typed = command_line[2:]  # without the names of program and command
    flags = _read_flags(typed)
    # The parser fills in all defaults, and a budget refuses granularity=weight, which is one of them.
    if not _asks_for_granularity(typed, flags):
        del values["posterior"]["granularity"]
    _let_flags_choose_budget_(values["budget"], flags)
    recipe = make_settings(Recipe, {key: values[key] for key in Recipe.model_fields})
    in_int8 = recipe.budget.precision == "int8"
    compressed = compress(
        recipe,
        arguments.out,
        command_line,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        make_meter=lambda dense, example: (
            LatencyMeter(recipe.budget.runtime, dense, example, int8=in_int8).measure_part
        ),
    )
    processes = PartialState()
    processes.wait_for_everyone()
    processes.destroy_process_group()
    if not processes.is_main_process:
        _leave()
    print(finish_run(compressed, arguments.out))
    with show_phase("writing the report"):
        page = write_report(arguments.out)
    print(f"report: {page}")
    if compressed.missed:
        raise TrainingError(compressed.missed)


def _leave() -> NoReturn:
    """End this process, which has nothing left to do, without tearing the interpreter down.

    1. PyTorch caches the layouts of sharded tensors, and with them the process group: `destroy_process_group` does not
       end the threads of gloo.
    2. Such a thread frees the tensors of its last operation when it is given the time. If the interpreter is being
       torn down by then, the thread is unwound, and C++ aborts the process ("terminate called without an active
       exception"); torchrun would call a run failed whose results are whole.
    3. The first process needs none of this: it still has seconds of work to do, in which the threads come to rest.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


COMPRESS = Command(
    name="compress",
    summary="settings in, sparse and smaller network out",
    description="Train, sparsify, shrink, check and report: settings in, a run folder out.",
    add_arguments=add_arguments,
    read_defaults=read_defaults,
    run=run,
)
