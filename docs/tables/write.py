"""Write the generated parts of README.md and docs/ anew, each between its markers.

Run: `python docs/tables/write.py [--check] [--collect FOLDER]`

`--check` writes nothing and fails where a page is stale.  `--collect` first copies the results of a finished run: of
`compress`, of an experiment of `reproduce`, or of a league of `bench`, with its pictures.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from functools import partial
from pathlib import Path

import settings_tables
import study_tables
from collect import collect_results
from export_tables import exports, mobile, packed_sizes, sparse_kernels
from front_page import quick_start, six_results
from host_tables import cifar10_budget, nni_conformance, nni_mnist, nni_speedup, torch_pruning_conformance
from reading import PAGES, read_results
from run_tables import budget_multiples, budget_noise, budget_ranking, photos_budget, photos_budget_runtimes
from scale_tables import estimators, faults, large_models, shrink_while_training, step_cost
from speed_tables import drawn_sizes, kept_memory, pass_speed, time_to_result, zoo_latency

Table = Callable[[], list[str]]
SPACE = "\u00a0"
"""A space at which a browser does not break the line, so that a mean and its deviation stay together."""

NAMED_AS_THEIR_RESULTS = (
    *(exports, mobile, packed_sizes, sparse_kernels),
    *(drawn_sizes, kept_memory, pass_speed, time_to_result, zoo_latency),
    *(budget_multiples, budget_noise, budget_ranking, photos_budget, photos_budget_runtimes),
    *(estimators, faults, large_models, shrink_while_training, step_cost),
    *(cifar10_budget, nni_conformance, nni_mnist, nni_speedup, torch_pruning_conformance),
)


def from_results(table: Callable[[dict[str, object]], list[str]]) -> list[str]:
    """A table of the results file that has the name of its function."""
    return table(read_results(table.__name__))


def tables_of_photos(name: str) -> dict[str, Table]:
    """The tables of another run with photos: its networks, and what they do in the runtimes."""
    return {
        name: lambda: photos_budget(read_results(name)),
        f"{name}_runtimes": lambda: photos_budget_runtimes(read_results(f"{name}_runtimes")),
    }


TABLES: dict[str, Table] = {
    "quick_start": quick_start,
    "six_results": six_results,
    **settings_tables.TABLES,
    **study_tables.TABLES,
    **{table.__name__: partial(from_results, table) for table in NAMED_AS_THEIR_RESULTS},
    **tables_of_photos("photos_budget_128"),
    **tables_of_photos("photos_resnet18"),
    **tables_of_photos("photos_deit_tiny"),
}


def render(text: str) -> str:
    """`text` with what stands between the markers of each table replaced."""
    for name, table in TABLES.items():
        start, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        if start not in text:
            continue
        before, rest = text.split(start)
        _, after = rest.split(end)
        lines = [line.replace(" ± ", f"{SPACE}±{SPACE}") for line in table()]
        text = before + "\n".join([start, *lines, end]) + after
    return text


def main() -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--collect", type=Path)
    arguments = parser.parse_args()
    if arguments.collect is not None:
        collect_results(arguments.collect)
    stale = [page for page in PAGES if render(page.read_text()) != page.read_text()]
    if arguments.check:
        for page in stale:
            print(f"{page.name} is not what its results say: run python docs/tables/write.py", file=sys.stderr)
        return int(bool(stale))
    for page in stale:
        page.write_text(render(page.read_text()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
