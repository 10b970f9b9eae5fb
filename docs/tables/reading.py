"""Where the results are, and how a table is written in Markdown."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
PICTURES = DOCS / "pictures"
PAGES = (ROOT / "README.md", *sorted(DOCS.glob("*.md")))


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def read_results(name: str) -> Any:
    """What docs/results/NAME.json holds."""
    return read(RESULTS / f"{name}.json")


def head(*titles: str, words: int = 1) -> list[str]:
    """The first two lines of a table: the first `words` columns are aligned to the left, the others to the right."""
    return [row(titles), "|" + "---|" * words + "--:|" * (len(titles) - words)]


def row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def cells(table: list[str], title: str) -> dict[str, str]:
    """The row of a table that begins with `title`, bold or not, by column; counts of seeds are dropped."""
    columns, _, *rows = [[cell.strip().replace("**", "") for cell in line.split("|")[1:-1]] for line in table]
    for cells_of_row in rows:
        if re.sub(r" \(\d+ seeds?\)$", "", cells_of_row[0]) == title:
            return dict(zip(columns, cells_of_row, strict=True))
    raise KeyError(title)
