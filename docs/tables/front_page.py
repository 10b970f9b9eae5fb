"""What README.md shows: the output of its code, and six rows of results, each a cell of a table in the docs."""

import math
import re

from reading import read_results
from study_tables import champions, reproduced

PAPERS = {
    "MNIST, LeNet-300-100, single weights": (
        "mnist",
        "LeNet-300-100",
        "Sparse VD (Molchanov et al. 2017)",
        "weights",
    ),
    "MNIST, LeNet-5-Caffe, single weights": (
        "mnist",
        "LeNet-5-Caffe",
        "Sparse VD (Molchanov et al. 2017)",
        "weights",
    ),
    "MNIST, LeNet-5-Caffe, channels": (
        "structured",
        "LeNet-5-Caffe, pressure 60",
        "SBP (Neklyudov et al. 2017)",
        "MACs",
    ),
}
"""Task → experiment of `reproduce`, its variant, the published row beside it, and what there are fewer of."""

LEAGUES = (
    ("Imagenette's photos, `tf_efficientnet_lite0`", "photos_channels", "4× fewer MACs"),
    ("Imagenette's photos, `tf_efficientnet_lite0`", "photos_channels", "8× fewer MACs"),
    ("MNIST, 20,000 images, LeNet-300-100", "lenet_300_100", "99 % zeros"),
)
"""Task, league and level."""

SEEDS = 3
"""Runs behind each mean with a deviation."""

HOSTS = {"torch": "gradual magnitude"}
"""What is said of the best of a framework in place of its name."""
NOTES = {"photos_channels": "; not all of its pruners have played"}
"""League → what a reader has to know of the others."""


def quick_start() -> list[str]:
    """What the code of README.md printed when `record_quick_start.py` ran it."""
    return ["```text", *read_results("quick_start")["output"], "```"]


def six_results() -> list[str]:
    """Ours beside the best of the others on six tasks."""
    lines = ["| task | ours: test error % | best of the others |", "|---|---|---|"]
    for task, (experiment, variant, paper, fewer) in PAPERS.items():
        table = reproduced(experiment)
        ours, published = cells(table, variant), cells(table, f"{variant}: {paper}")
        column = f"times fewer {fewer}"
        ours_at = f"at {ours[column].split()[0]}× fewer {fewer}"
        published_at = f"at {published[column]}×, {paper}"
        lines.append(compare(task, (ours["error %"], ours_at), (published["error %"], published_at)))
    for task, league, level in LEAGUES:
        table = champions(league)
        hosts = [line.split("|")[1].strip() for line in table[2:]]
        errors = {host: re.split(r" at |, ", cells(table, host)[level])[0] for host in hosts}
        others = [host for host in hosts if host != "ours" and errors[host] not in ("", "failed")]
        best = min(others, key=lambda host: number(errors[host]))
        lines.append(
            compare(
                task, (errors["ours"], f"at {level}"), (errors[best], HOSTS.get(best, best) + NOTES.get(league, ""))
            )
        )
    return lines


def compare(task: str, ours: tuple[str, str], other: tuple[str, str]) -> str:
    """One row; each side is an error and what stands beside it.

    An error is bold where it is lower by more than two standard errors of the difference.  A single run has no
    standard error, and two single runs decide nothing.
    """
    difference = number(ours[0]) - number(other[0])
    noise = math.hypot(deviation(ours[0]), deviation(other[0])) / math.sqrt(SEEDS)
    sure = 0 < 2 * noise < abs(difference)
    left = f"**{ours[0]}**" if sure and difference < 0 else ours[0]
    right = f"**{other[0]}**" if sure and difference > 0 else other[0]
    return f"| {task} | {left} {ours[1]} | {right} {other[1]} |"


def deviation(cell: str) -> float:
    """The standard deviation behind a mean; 0 for a single run."""
    return float(cell.partition("±")[2] or 0)


def cells(table: list[str], title: str) -> dict[str, str]:
    """The row of a table that begins with `title`, bold or not, by column; counts of seeds are dropped."""
    columns, _, *rows = [[cell.strip().replace("**", "") for cell in line.split("|")[1:-1]] for line in table]
    for cells_of_row in rows:
        if re.sub(r" \(\d+ seeds?\)$", "", cells_of_row[0]) == title:
            return dict(zip(columns, cells_of_row, strict=True))
    raise KeyError(title)


def number(text: str) -> float:
    """The mean of `2.85 ± 0.10`."""
    return float(text.split()[0])
