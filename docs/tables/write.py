"""Write the tables of README.md and docs/ anew from docs/results/*.json.

Run: `python docs/tables/write.py [--check]`

`--collect FOLDER` first copies the results of a run there, or of an experiment of `reproduce` or a league of `bench`
with its pictures.
"""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from export_tables import exports, mobile, packed_sizes, sparse_kernels
from scale_tables import estimators, faults, large_models, shrink_while_training, step_cost
from speed_tables import pass_speed, time_to_result, zoo_latency

from nni_sparsevd.studies import bench, reproduce, zoo

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "results"
TITLES = {
    "resnet18_cifar10": "ResNet-18 ¼ width, CIFAR-10 (JPEG), channels",
}


def collect(run: Path) -> None:
    """Copy what the tables and pages need of a folder to docs/results and docs/pictures."""
    if run.name in reproduce.list_experiments():
        values = read(run / f"{run.name}.json")
        (RESULTS / f"reproduce_{run.name}.json").write_text(json.dumps(values) + "\n")
        for picture in (*run.glob("*.png"), *run.glob("*.gif")):
            shutil.copy(picture, ROOT / "docs" / "pictures" / f"{run.name}_{picture.name}")
        return
    if run.name in bench.list_leagues():
        (RESULTS / f"bench_{run.name}.json").write_text(json.dumps(read(run / f"{run.name}.json")) + "\n")
        for picture in run.glob("*.png"):
            shutil.copy(picture, ROOT / "docs" / "pictures" / f"bench_{picture.name}")
        return
    values = {**read(run / "result.json"), "environment": read(run / "environment.json")}
    values["curve"] = read(run / "curve.json")
    (RESULTS / f"{run.name}.json").write_text(json.dumps(values, indent=1) + "\n")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def compression() -> list[str]:
    lines = ["| run | dense error % | error % | weights | fewer | parameters after shrinking | MACs ÷ | latency ÷ |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, title in TITLES.items():
        row = read(RESULTS / f"{name}.json")
        dense, small = row["size"]["dense"], row["size"]["shrunk"]
        lines.append(
            f"| {title} | {row['test']['dense']['error_percent']:.2f} | {row['test']['shrunk']['error_percent']:.2f} | "
            f"{row['weights']['total']:,} → {row['weights']['kept']:,} | {row['weights']['compression']:.1f}× | "
            f"{small['parameters']:,} | {dense['macs'] / small['macs']:.2f} | "
            f"{dense['latency_ms'] / small['latency_ms']:.2f} |"
        )
    return lines


def nni_speedup() -> list[str]:
    results = read(RESULTS / "nni_speedup.json")["results"]
    lines = ["| network, input | parameters | " + " | ".join(results[0]["ways"]) + " |", "|---|--:|--:|--:|--:|"]
    for row in results:
        cells = []
        for way, values in row["ways"].items():
            # silent channels change the function that the small network must keep: its difference is from that one
            wrong = values["check"]["max_rel_32"] if "silence" in way else values["difference"]
            cells.append(f"{wrong:.2g} · {values['parameters']:,} · {values['seconds']:.1f} s")
        size = "×".join(str(length) for length in row["input"])
        lines.append(f"| {row['network']}, {size} | {row['parameters']:,} | {' | '.join(cells)} |")
    return lines


def nni_conformance() -> list[str]:
    networks = read(RESULTS / "nni_conformance.json")["networks"]
    rows = next(iter(networks.values()))
    pruners = list(next(iter(rows.values())))
    names = [pruner.replace("NormPruner", "").replace("Pruner", "").replace("SparseVD, ", "") for pruner in pruners]
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(pruners) + 1) + "|"]
    for row in rows:
        passed = [sum(not found[row][pruner] for found in networks.values()) for pruner in pruners]
        cells = [str(count) if count == len(networks) else f"**{count}**" for count in passed]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return lines


def nni_mnist() -> list[str]:
    lines = ["| threshold | dense error % | error % | weights | fewer | seconds |", "|--:|--:|--:|--:|--:|--:|"]
    for row in read(RESULTS / "nni_mnist.json")["results"]:
        lines.append(
            f"| {row['threshold']:g} | {row['dense_error_percent']:.2f} | {row['error_percent']:.2f} | "
            f"{row['weights']:,} → {row['kept']:,} | {row['weights'] / row['kept']:.1f}× | {row['seconds']:.0f} |"
        )
    return lines


def tp_conformance() -> list[str]:
    networks = read(RESULTS / "torch_pruning_conformance.json")["networks"]
    lines = ["| importance, pruner | " + " | ".join(networks) + " |", "|---" * (len(networks) + 1) + "|"]
    for row in next(iter(networks.values())):
        lines.append(f"| {row} | {' | '.join(_verdict(found[row]) for found in networks.values())} |")
    return lines


def _verdict(cells: dict[str, str]) -> str:
    """How far it gets: the first column that is not empty, and why."""
    for column, wrong in cells.items():
        if wrong:
            words = wrong if len(wrong) <= 40 else f"{wrong[:40]}…"
            return words if column == "exact" else f"**{column}**: {words}"
    return "exact"


def budget() -> list[str]:
    results = read(RESULTS / "cifar10_budget.json")
    lines = ["| | error % | after the cut % | MACs | of the budget | parameters | latency ÷ |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for name, row in results.items():
        if isinstance(row, dict) and "macs" in row:
            off = f"{row['off_percent']:+.2f} %" if "off_percent" in row else ""
            cut = f"{row['error_after_cut']:.2f}" if "error_after_cut" in row else ""
            lines.append(
                f"| {name} | {row['error_percent']:.2f} | {cut} | {row['macs']:,} | {off} | {row['parameters']:,} | "
                f"{row['latency_ratio']:.2f} |"
            )
    return lines


def lenet5_structured() -> list[str]:
    """Published rows as the recipe of the experiment `structured` has them, then ours."""
    lines = ["| | units | error % | MACs | MACs ÷ | latency ÷, 1 image | latency ÷, 100 images |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|")
    for paper in reproduce.read_experiment("structured").variants["lenet5_60"].published:
        lines.append(f"| {paper.method} | {paper.units} | {paper.error} | | {paper.macs} | | |")
    for row in read(RESULTS / "lenet5_structured.json")["results"]:
        faster = [f"{row[f'latency_batch_{batch}']['faster']:.2f}" for batch in (1, 100)]
        units = " - ".join(str(count) for count in row["units"])
        error = row["test"]["error_percent"]
        lines.append(
            f"| ours, {row['name']} | {units} | {error:.2f} | {row['macs']:,} | {row['fewer_macs']:.1f} | "
            f"{' | '.join(faster)} |"
        )
    return lines


def zoo_rows() -> list[str]:
    return zoo.format_table(read(RESULTS / "zoo.json")["rows"])


def zoo_summary() -> list[str]:
    return [f"- {line}" for line in zoo.format_summary(read(RESULTS / "zoo.json")["rows"]).splitlines()]


def reproduced(name: str) -> list[str]:
    return reproduce.format_table(reproduce.read_experiment(name), read(RESULTS / f"reproduce_{name}.json")["runs"])


def measured(name: str, variant: str) -> list[str]:
    runs = read(RESULTS / "reproduce_mnist.json")["runs"]
    return reproduce.MEASURES[name].format_table([run for run in runs if run["variant"] == variant])


def alone(table: Callable[[Any], list[str]]) -> list[str]:
    """A table of one results file, which has its name."""
    return table(read(RESULTS / f"{table.__name__}.json"))


def played(name: str) -> list[str]:
    chosen, rows = bench.read_league(name), read(RESULTS / f"bench_{name}.json")["rows"]
    return bench.format_standings(chosen, rows)


def best(name: str) -> list[str]:
    return bench.format_champions(bench.read_league(name), read(RESULTS / f"bench_{name}.json")["rows"])


EXPORTS = (exports, mobile, packed_sizes, sparse_kernels)
TIMES = (pass_speed, time_to_result, zoo_latency)
SCALE = (estimators, faults, large_models, shrink_while_training, step_cost)
TABLES: dict[str, Callable[[], list[str]]] = {
    **{f"reproduce_{name}": partial(reproduced, name) for name in reproduce.list_experiments()},
    **{
        f"{name}_{network}{way}": partial(measured, name, network + way)
        for name, way in (("calibration", ""), ("tradeoff", "_moved"))
        for network in ("lenet_300_100", "lenet5_caffe")
    },
    **{f"bench_{name}": partial(played, name) for name in bench.list_leagues()},
    **{f"best_{name}": partial(best, name) for name in bench.list_leagues()},
    **{one.__name__: partial(alone, one) for one in TIMES + SCALE + EXPORTS},
    "zoo": zoo_rows,
    "zoo_summary": zoo_summary,
    "compression": compression,
    "nni_speedup": nni_speedup,
    "nni_conformance": nni_conformance,
    "nni_mnist": nni_mnist,
    "tp_conformance": tp_conformance,
    "budget": budget,
    "lenet5_structured": lenet5_structured,
}


def rendered(text: str) -> str:
    """`text` with what stands between the markers of each table replaced."""
    for name, table in TABLES.items():
        start, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        if start in text:
            before, rest = text.split(start)
            text = before + "\n".join([start, *table(), end]) + rest.split(end)[1]
    return text


def main(arguments: list[str]) -> int:
    if "--collect" in arguments:
        collect(Path(arguments[arguments.index("--collect") + 1]))
    stale = 0
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = rendered(page.read_text())
        stale += text != page.read_text()
        if "--check" not in arguments:
            page.write_text(text)
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
