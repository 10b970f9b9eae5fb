"""What README.md shows: the output of its code, and six rows of results, each a cell of a table in the docs."""

import re

from reading import cells, read_results
from study_tables import champions, paired_champions, reproduced

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

PHOTOS = "Imagenette's photos, pre-trained `tf_efficientnet_lite0`"
LEAGUES = (
    (PHOTOS, "photos_channels", "4× fewer MACs"),
    (PHOTOS, "photos_channels", "8× fewer MACs"),
    ("MNIST, short training on 20,000 images, LeNet-300-100", "lenet_300_100", "99 % zeros"),
)
"""Task, league and level."""

HOSTS = {"torch": "gradual magnitude"}
"""What is said of the best of a framework in place of its name."""
NOTES = {"photos_channels": "; not all of its pruners have played"}
"""League → what a reader has to know of the others."""


def quick_start() -> list[str]:
    """What the code of README.md printed when `record_quick_start.py` ran it."""
    return ["```text", *read_results("quick_start")["output"], "```"]


def six_results() -> list[str]:
    """Ours on six tasks, beside the lowest error of the others in a league, or a published one."""
    lines = ["| task | ours: test error % | compared with |", "|---|---|---|"]
    lines += [compare_in_league(*league) for league in LEAGUES]
    for task, (experiment, variant, paper, fewer) in PAPERS.items():
        table = reproduced(experiment)
        ours, published = cells(table, variant), cells(table, f"{variant}: {paper}")
        column = f"times fewer {fewer}"
        ours_at = f"at {ours[column].split()[0]}× fewer {fewer}"
        published_at = f"at {published[column]}×, {paper}"
        lines.append(f"| {task} | {ours['error %']} {ours_at} | {published['error %']} {published_at} |")
    return lines


def compare_in_league(task: str, league: str, level: str) -> str:
    """One row; an error is bold where the league's paired differences say that it is first."""
    table, paired = champions(league), paired_champions(league)
    hosts = [line.split("|")[1].strip() for line in table[2:]]
    errors = {host: re.split(r" at |, ", cells(table, host)[level])[0] for host in hosts}
    others = [host for host in hosts if host != "ours" and errors[host] not in ("", "failed")]
    best = min(others, key=lambda host: number(errors[host]))
    shown = {}
    for host in ("ours", best):
        shown[host] = f"**{errors[host]}**" if cells(paired, host)[level] == "first" else errors[host]
    title = HOSTS.get(best, best) + NOTES.get(league, "")
    return f"| {task} | {shown['ours']} at {level} | {shown[best]} {title} |"


def number(text: str) -> float:
    """The mean of `2.85 ± 0.10`."""
    return float(text.split()[0])
