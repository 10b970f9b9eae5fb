"""The command line: `nni-sparsevd compress | report | check | export | list-models | zoo | reproduce | bench`."""

import difflib
import re
import sys
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from . import recipe as recipes
from .errors import SettingError, SparseVDError
from .recipe import Recipe
from .settings import make_settings


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed with a message, 2 bad usage, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else arguments
    actions = {"compress": _compress, "report": _report, "check": _check, "list-models": _list_models, "zoo": _zoo,
               "reproduce": _reproduce, "bench": _bench, "export": _export}  # fmt: skip
    try:
        parsed = _parser(given).parse_args(given)
        actions[parsed.subcommand](parsed[parsed.subcommand], ["nni-sparsevd", *given])
    except (ArgumentError, SettingError) as error:
        return _say(_with_suggestion(_in_short(str(error)), given), 2)
    except SparseVDError as error:
        return _say(str(error), 1)
    except KeyboardInterrupt as error:
        return _say(str(error) or "interrupted", 130)
    except OSError as error:  # disk, memory, permissions: name the file, keep the traceback for developers
        return _say(f"{error.filename or 'input/output'}: {error.strerror or error}", 1)
    return 0


def _say(message: str, code: int) -> int:
    print(f"nni-sparsevd: {message}", file=sys.stderr)
    return code


def _parser(given: list[str]) -> ArgumentParser:
    parser = ArgumentParser(
        prog="nni-sparsevd",
        description="Networks that learn which of their weights are noise.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands()
    for name, (said, command) in _commands(given).items():
        commands.add_subcommand(name, command, help=said)
    return parser


def _commands(given: list[str]) -> dict[str, tuple[str, ArgumentParser]]:
    """Name -> what the list of commands says of it, and its flags."""
    compress = _command("Train, sparsify, shrink, check and report: settings in, a run folder out.")
    compress.add_argument("--recipe", type=Path, help="TOML or YAML file of the settings below; flags override it")
    compress.add_argument("--out", type=Path, required=True, help="run folder to make")
    compress.add_argument("--resume", action="store_true", help="go on where an interrupted run stopped")
    compress.add_argument("--overwrite", action="store_true", help="delete the run folder first")
    compress.add_class_arguments(Recipe, None)
    compress.set_defaults(_defaults(given))
    report = _command("Draw the report of a run folder again.")
    check = _command("Compare the masked and the shrunk network of a run folder on random inputs.")
    for command in (report, check):
        command.add_argument("run", type=Path, help="run folder of compress")
    models = _command("List the networks that compress knows.")
    models.add_argument("pattern", nargs="?", default="*", help="shell pattern, e.g. 'resnet*'")
    zoo = _command("Shrink the smallest network of every architecture that timm has, under several masks; compare.")
    zoo.add_argument(
        "--out", type=Path, required=True, help="folder for the rows; those that it holds are not made again"
    )
    zoo.add_argument("--families", default="*", help="shell pattern of timm's modules, or several with commas")
    zoo.add_argument("--jobs", type=int, default=1, help="networks at once, one thread each")
    zoo.add_argument("--seconds", type=float, default=600.0, help="what one family may take")
    zoo.add_argument("--gibibytes", type=float, default=16.0, help="memory that one family may take")
    zoo.add_argument("--seed", type=int, default=0, help="of weights, masks and inputs")
    again = _command(
        "Run an experiment of the papers: results as JSON, a page with its table, pictures.  What is done "
        "is not run again, what was interrupted goes on."
    )
    again.add_argument("name", nargs="?", help="which one; without a name they are listed")
    again.add_argument("--data", type=Path, default=Path("data"), help="folder that holds MNIST/raw and cifar10/*.tar")
    again.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="folder for the runs and pages")
    again.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    again.add_argument("--seeds", type=list[int], help="only these seeds, e.g. [0]")
    bench = _command(
        "Every pruner of NNI and Torch-Pruning and ours under one protocol: results as JSON, a page with "
        "its table and picture.  What is done is not run again."
    )
    bench.add_argument("name", nargs="?", help="which league; without a name they are listed, with who plays")
    bench.add_argument("--data", type=Path, default=Path("data"), help="folder that holds MNIST/raw and cifar10/*.tar")
    bench.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for the rows and pages")
    bench.add_argument("--jobs", type=int, default=1, help="rivals at once, one thread each")
    bench.add_argument("--rivals", type=list[str], help="only these, e.g. [vd_weight,magnitude]")
    bench.add_argument("--known", type=Path, help="results of an earlier call, e.g. docs/results/bench_NAME.json")
    bench.add_argument("--seconds", type=float, default=3600.0, help="what one rival with one seed may take")
    bench.add_argument("--gibibytes", type=float, default=16.0, help="memory that it may take")
    out = _command(
        "Write a network for another runtime, run the file there and compare: .onnx, .pt2 (torch.export), "
        ".pte (ExecuTorch), .tflite (LiteRT)."
    )
    out.add_argument("source", type=Path, help="run folder of compress, or what nni_sparsevd.load opens")
    out.add_argument("--to", type=Path, required=True, help="file to write; its suffix says the format")
    out.add_argument("--input", type=list[int], help="shape of one input, e.g. [3,224,224]; a run folder knows it")
    out.add_argument("--fixed_batch", action="store_true", help="batches of one only; .pte and .tflite have no others")
    return {
        "compress": ("settings in, sparse and smaller network out", compress),
        "report": ("draw the report of a run folder again", report),
        "check": ("compare the masked and the shrunk network of a run folder on random inputs", check),
        "list-models": ("list the networks that compress knows", models),
        "zoo": ("exact shrinking of every architecture of timm", zoo),
        "reproduce": ("the experiments of the papers", again),
        "bench": ("the league: who prunes best", bench),
        "export": ("a file for another runtime, compared with the network", out),
    }


def _command(description: str) -> ArgumentParser:
    """A parser that raises instead of ending the program, and takes no flag for another."""
    return ArgumentParser(description=description, exit_on_error=False, allow_abbrev=False)


def _defaults(given: list[str]) -> dict[str, Any]:
    """Settings of the file after --recipe, under the names of the flags."""
    finder = ArgumentParser(exit_on_error=False, allow_abbrev=False, add_help=False)
    finder.add_argument("--recipe", type=Path)
    chosen = next((given[i + 1] for i, word in enumerate(given[:-1]) if word == "--recipe"), None)
    chosen = next((word.partition("=")[2] for word in given if word.startswith("--recipe=")), chosen)
    if chosen is None:
        return {}
    values = recipes.read_recipe(Path(chosen)).model_dump(mode="json")
    flat: dict[str, Any] = {}
    for part, value in values.items():
        flat |= {f"{part}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {part: value}
    return flat


def _with_suggestion(message: str, given: list[str]) -> str:
    """The nearest known flag for each that is unknown."""
    _, command = _commands([]).get(given[0] if given else "", ("", _command("")))
    known = re.findall(r"--[a-z][\w.]*", command.format_help())
    open_ended = ("--model.arguments.", "--posterior.kl_weights.", "--posterior.estimators.")
    hints = []
    for word in given:
        flag = word.partition("=")[0]
        if flag.startswith("--") and flag not in known and not flag.startswith(open_ended):
            close = difflib.get_close_matches(flag, known, n=1)
            hints += [f"did you mean {close[0]}?"] if close else []
    return "; ".join([message, *hints])


def _in_short(message: str) -> str:
    """The parser's account of a bad value on one line: the key, what it may be, what was found."""
    key = re.search(r'Parser key "([^"]+)"', message)
    if key is None:
        return message
    wanted = re.findall(r"Input should [^\[\n]+", message)
    wanted += [f"one of {choices}" for choices in re.findall(r"Expected a typing\.Literal\[(.+)\]", message)]
    found = re.search(r"(?:Got value|Given value): (.+)", message)
    said = " or ".join(dict.fromkeys(part.strip().rstrip(",") for part in wanted)) or message.partition("\n")[2].strip()
    return f"{key[1]}: {said}" + (f" (found {found[1].strip()!r})" if found and wanted else "")


def _recipe(chosen: Namespace) -> Recipe:
    values = chosen.as_dict()
    return make_settings(Recipe, {key: values[key] for key in Recipe.model_fields})


def _compress(chosen: Namespace, command: list[str]) -> None:
    from accelerate import PartialState

    from .report import write_report
    from .results import finish
    from .training import compress

    done = compress(_recipe(chosen), chosen.out, command, resume=chosen.resume, overwrite=chosen.overwrite)
    processes = PartialState()
    processes.wait_for_everyone()  # gloo's threads may still hold tensors, at which a process that leaves would abort
    processes.destroy_process_group()
    if not processes.is_main_process:
        return
    print(finish(done, chosen.out))
    print(f"report: {write_report(chosen.out)}")


def _report(chosen: Namespace, command: list[str]) -> None:
    from .report import write_report

    print(write_report(chosen.run))


def _check(chosen: Namespace, command: list[str]) -> None:
    from .results import check_run

    result = check_run(chosen.run)
    print(result)
    if not result.ok:
        raise SparseVDError(f"{chosen.run}: small.safetensors does not compute what masked.safetensors does")


def _zoo(chosen: Namespace, command: list[str]) -> None:
    from .files import write_bytes, write_json
    from .studies.zoo import Limits, format_summary, format_table, run_zoo
    from .training.environment import describe_environment

    limits = Limits(chosen.seconds, chosen.gibibytes)
    rows = [row.to_dict() for row in run_zoo(chosen.out / "rows", chosen.families, chosen.jobs, limits, chosen.seed)]
    write_json(chosen.out / "zoo.json", {"environment": describe_environment(command, chosen.seed), "rows": rows})
    write_bytes(chosen.out / "zoo.md", "\n".join([format_summary(rows), "", *format_table(rows), ""]).encode())
    print(format_summary(rows))
    print(f"table: {chosen.out / 'zoo.md'}")
    wrong = [row for row in rows if str(row["verdict"]).startswith("different")]
    if wrong:
        raise SparseVDError(f"{len(wrong)} networks compute something else once shrunk; see {chosen.out / 'zoo.md'}")


def _reproduce(chosen: Namespace, command: list[str]) -> None:
    from .studies.reproduce import list_experiments, read_experiment, reproduce_experiment

    if chosen.name is None:
        print("\n".join(f"{name:16} {read_experiment(name).title}" for name in list_experiments()))
        return
    seeds = None if chosen.seeds is None else tuple(chosen.seeds)
    print(reproduce_experiment(chosen.name, chosen.data, chosen.out, command, chosen.jobs, seeds))


def _bench(chosen: Namespace, command: list[str]) -> None:
    from .studies.bench import list_leagues, read_league, rivals_of, run_league
    from .studies.processes import Limits

    if chosen.name is None:
        for name in list_leagues():
            print(f"{name:16} {read_league(name).title}")
            print(
                "\n".join(f"    {key:20} {one.title} ({one.host})" for key, one in rivals_of(read_league(name)).items())
            )
        return
    limits = Limits(chosen.seconds, chosen.gibibytes)
    rivals = tuple(chosen.rivals or ())
    print(run_league(chosen.name, chosen.data, chosen.out, command, chosen.jobs, limits, rivals, chosen.known))


def _export(chosen: Namespace, command: list[str]) -> None:
    import torch

    from .export import export
    from .loading import load
    from .results import export_run

    dynamic = not chosen.fixed_batch
    if (chosen.source / "recipe.toml").exists():
        print(export_run(chosen.source, chosen.to, dynamic_batch=dynamic))
        return
    model = load(chosen.source)
    shape = chosen.input or (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if not shape:
        raise SettingError(f"--input: {chosen.source} does not say the shape of an input; give it, e.g. [3,224,224]")
    print(export(model, chosen.to, torch.zeros(1, *shape), dynamic_batch=dynamic))


def _list_models(chosen: Namespace, command: list[str]) -> None:
    from .models import list_models

    names = list_models(chosen.pattern)
    if not names:
        raise SettingError(f"no network matches {chosen.pattern!r}")
    print("\n".join(names))
