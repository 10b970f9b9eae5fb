"""`zoo`, `reproduce` and `bench`: long comparisons that go on where they were interrupted."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..errors import SparseVDError
from .command import Command

GOES_ON = "stopped; the same command goes on, and does not run again what is done"


def add_zoo_arguments(parser: ArgumentParser) -> None:
    """Add which families, and what each may take."""
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for the rows; those that it holds are not made again"
    )
    parser.add_argument("--library", default="timm", help="timm, torchvision or transformers")
    parser.add_argument(
        "--families",
        default="*",
        help="shell pattern of timm's modules or the other's networks, or several with commas",
    )
    parser.add_argument("--jobs", type=int, default=1, help="networks at once, one thread each")
    parser.add_argument("--seconds", type=float, default=600.0, help="what one family may take")
    parser.add_argument("--gibibytes", type=float, default=16.0, help="memory that one family may take")
    parser.add_argument("--seed", type=int, default=0, help="of weights, masks and inputs")


def run_zoo_command(arguments: Namespace, command_line: list[str]) -> None:
    """Run the zoo; raises `SparseVDError` when a shrunk network computes something else than the masked one."""
    from ..files import write_bytes, write_json
    from ..studies.zoo import Limits, format_summary, format_table, run_zoo
    from ..training import describe_environment

    limits = Limits(arguments.seconds, arguments.gibibytes)
    folder, families, library = arguments.out / "rows", arguments.families, arguments.library
    rows = [row.to_dict() for row in run_zoo(folder, families, arguments.jobs, limits, arguments.seed, library)]
    environment = describe_environment(command_line, arguments.seed)
    page = arguments.out / "zoo.md"
    write_json(arguments.out / "zoo.json", {"environment": environment, "rows": rows})
    write_bytes(page, "\n".join([format_summary(rows), "", *format_table(rows), ""]).encode())
    print(format_summary(rows))
    print(f"table: {page}")
    different = [row for row in rows if str(row["verdict"]).startswith("different")]
    if different:
        raise SparseVDError(f"{len(different)} networks compute something else once shrunk; see {page}")


def add_reproduce_arguments(parser: ArgumentParser) -> None:
    """Add which experiment, with which data and seeds."""
    parser.add_argument("name", nargs="?", help="which one; without a name they are listed")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds MNIST/raw and cifar10/*.tar")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="folder for the runs and pages")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--seeds", type=list[int], help="run every variant with these seeds, any from 0, e.g. [7]")


def run_reproduce(arguments: Namespace, command_line: list[str]) -> None:
    """List the experiments, or run one and print where its page is."""
    from ..studies.reproduce import list_experiments, read_experiment, reproduce_experiment

    if arguments.name is None:
        for name in list_experiments():
            print(f"{name:16} {read_experiment(name).title}")
        return
    seeds = None if arguments.seeds is None else tuple(arguments.seeds)
    print(reproduce_experiment(arguments.name, arguments.data, arguments.out, command_line, arguments.jobs, seeds))


def add_bench_arguments(parser: ArgumentParser) -> None:
    """Add which league, with which data and rivals, and what each may take."""
    parser.add_argument("name", nargs="?", help="which league; without a name they are listed, with who plays")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds MNIST/raw and cifar10/*.tar")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for the rows and pages")
    parser.add_argument("--jobs", type=int, default=1, help="rivals at once, one thread each")
    parser.add_argument("--rivals", type=list[str], help="only these, e.g. [vd_weight,magnitude]")
    parser.add_argument("--seeds", type=list[int], help="with these seeds, any from 0, e.g. [1,2]")
    parser.add_argument("--known", type=Path, help="results of an earlier call, e.g. docs/results/bench_NAME.json")
    parser.add_argument("--seconds", type=float, default=3600.0, help="what one rival with one seed may take")
    parser.add_argument("--gibibytes", type=float, default=16.0, help="memory that it may take")


def run_bench(arguments: Namespace, command_line: list[str]) -> None:
    """List the leagues with their rivals, or let one be played and print where its page is."""
    from ..studies.bench import list_leagues, read_league, rivals_of, run_league
    from ..studies.processes import Limits

    if arguments.name is None:
        for name in list_leagues():
            league = read_league(name)
            print(f"{name:16} {league.title}")
            for key, rival in rivals_of(league).items():
                print(f"    {key:20} {rival.title} ({rival.host})")
        return
    limits = Limits(arguments.seconds, arguments.gibibytes)
    page = run_league(
        arguments.name,
        arguments.data,
        arguments.out,
        command_line,
        arguments.jobs,
        limits,
        rivals=tuple(arguments.rivals or ()),
        known=arguments.known,
        seeds=None if arguments.seeds is None else tuple(arguments.seeds),
    )
    print(page)


ZOO = Command(
    name="zoo",
    summary="exact shrinking of the networks of timm, torchvision and transformers",
    description="Shrink networks under several masks and compare: of timm the smallest of each architecture.",
    add_arguments=add_zoo_arguments,
    run=run_zoo_command,
    after_interrupt=GOES_ON,
)
REPRODUCE = Command(
    name="reproduce",
    summary="the experiments of the papers",
    description=(
        "Run an experiment of the papers: results as JSON, a page with its table, pictures. What is done is not run "
        "again, what was interrupted goes on."
    ),
    add_arguments=add_reproduce_arguments,
    run=run_reproduce,
    after_interrupt=GOES_ON,
)
BENCH = Command(
    name="bench",
    summary="the league: who prunes best",
    description=(
        "Every pruner of NNI and Torch-Pruning and ours under one protocol: results as JSON, a page with its table and "
        "picture. What is done is not run again."
    ),
    add_arguments=add_bench_arguments,
    run=run_bench,
    after_interrupt=GOES_ON,
)
