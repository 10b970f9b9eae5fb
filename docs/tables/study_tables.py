"""The tables of the paper's experiments, the leagues, the zoo and single runs."""

from functools import partial

from nni_sparsevd.studies import bench, reproduce, zoo
from reading import cells, head, read_results, row

LEAGUES = ("photos_channels", "lenet_300_100", "lenet5", "lenet5_channels")
TITLES = {
    "resnet18_cifar10": "ResNet-18 ¼ width, CIFAR-10 (JPEG), channels",
}


def compression() -> list[str]:
    """Runs of `compress`, one row each."""
    lines = head(
        "run", "dense error %", "error %", "weights", "fewer", "parameters after shrinking", "MACs ÷", "latency ÷"
    )
    for name, title in TITLES.items():
        run = read_results(name)
        test, weights = run["test"], run["weights"]
        dense, small = run["size"]["dense"], run["size"]["shrunk"]
        lines.append(
            row(
                [
                    title,
                    f"{test['dense']['error_percent']:.2f}",
                    f"{test['shrunk']['error_percent']:.2f}",
                    f"{weights['total']:,} → {weights['kept']:,}",
                    f"{weights['compression']:.1f}×",
                    f"{small['parameters']:,}",
                    f"{dense['macs'] / small['macs']:.2f}",
                    f"{dense['latency_ms'] / small['latency_ms']:.2f}",
                ]
            )
        )
    return lines


def lenet5_structured() -> list[str]:
    """Published rows as the recipe of the experiment `structured` has them, then ours."""
    lines = head("", "units", "error %", "MACs", "MACs ÷", "latency ÷, 1 image", "latency ÷, 100 images")
    for paper in reproduce.read_experiment("structured").variants["lenet5_60"].published:
        lines.append(row([paper.method, paper.units, paper.error, "", paper.macs, "", ""]))
    for run in read_results("lenet5_structured")["results"]:
        lines.append(
            row(
                [
                    f"ours, {run['name']}",
                    " - ".join(str(count) for count in run["units"]),
                    f"{run['test']['error_percent']:.2f}",
                    f"{run['macs']:,}",
                    f"{run['fewer_macs']:.1f}",
                    f"{run['latency_batch_1']['faster']:.2f}",
                    f"{run['latency_batch_100']['faster']:.2f}",
                ]
            )
        )
    return lines


def zoo_rows(name: str) -> list[str]:
    """Every network of one library."""
    return zoo.format_table(read_results(name)["rows"])


def zoo_summary(name: str) -> list[str]:
    """How many networks of one library shrink exactly, and what became of the others."""
    return [f"- {line}" for line in zoo.format_summary(read_results(name)["rows"]).splitlines()]


def zoo_exact() -> list[str]:
    """How many families of timm shrink exactly, as a line of a list."""
    first = zoo.format_summary(read_results("zoo")["rows"]).splitlines()[0]
    count = first.partition(" families")[0]
    timm = f"{count} [architectures of timm](docs/zoo.md)"
    return [f"- {timm} shrink exactly under every mask; channels that code picks by position stay."]


def reproduced(name: str) -> list[str]:
    """An experiment's own table."""
    return reproduce.format_table(reproduce.read_experiment(name), read_results(f"reproduce_{name}")["runs"])


def measured(measure: str, variant: str) -> list[str]:
    """What a measure found on the runs of one variant of the experiment `mnist`."""
    runs = read_results("reproduce_mnist")["runs"]
    return reproduce.MEASURES[measure].format_table([run for run in runs if run["variant"] == variant])


def leagues() -> list[str]:
    """Where ours stands among the frameworks, at each level of the leagues that count."""
    lines = head("league", "ours, level by level", words=2)
    for name in LEAGUES:
        league = bench.read_league(name)
        verdicts = [cell.rpartition(", ")[2] for cell in cells(paired_champions(name), "ours").values()][1:]
        levels = zip(map(league.format_level, league.levels), verdicts, strict=True)
        places = ", ".join(
            f"{level} **first**" if verdict == "first" else f"{level} {verdict}" for level, verdict in levels
        )
        lines.append(row([f"[{league.title}](league_{name}.md)", places]))
    return lines


def standings(league: str) -> list[str]:
    """Every rival of a league."""
    return bench.format_standings(bench.read_league(league), read_results(f"bench_{league}")["rows"])


def champions(league: str) -> list[str]:
    """The best of each framework in a league."""
    return bench.format_champions(bench.read_league(league), read_results(f"bench_{league}")["rows"])


def paired_champions(league: str) -> list[str]:
    """The best of each framework in a league against the lowest error among them."""
    return bench.format_paired_champions(bench.read_league(league), read_results(f"bench_{league}")["rows"])


def at_level(league: str, level: float) -> list[str]:
    """What every rival of a league reached at one level, and what it cost."""
    return bench.format_level(bench.read_league(league), read_results(f"bench_{league}")["rows"], level)


TABLES = {
    "leagues": leagues,
    "compression": compression,
    "lenet5_structured": lenet5_structured,
    **{name: partial(zoo_rows, name) for name in ("zoo", "zoo_torchvision", "zoo_transformers")},
    **{f"{name}_summary": partial(zoo_summary, name) for name in ("zoo", "zoo_torchvision", "zoo_transformers")},
    "zoo_exact": zoo_exact,
    "calibration_lenet_300_100": partial(measured, "calibration", "lenet_300_100"),
    "calibration_lenet5_caffe": partial(measured, "calibration", "lenet5_caffe"),
    "tradeoff_lenet_300_100_moved": partial(measured, "tradeoff", "lenet_300_100_moved"),
    "tradeoff_lenet5_caffe_moved": partial(measured, "tradeoff", "lenet5_caffe_moved"),
    **{f"reproduce_{name}": partial(reproduced, name) for name in reproduce.list_experiments()},
    **{f"bench_{name}": partial(standings, name) for name in bench.list_leagues()},
    **{f"photos_{level}": partial(at_level, "photos_channels", level) for level in (4, 8)},
    **{f"best_{name}": partial(champions, name) for name in bench.list_leagues()},
    **{f"paired_{name}": partial(paired_champions, name) for name in bench.list_leagues()},
}
