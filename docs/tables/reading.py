"""Where the results are, and how a table is written in Markdown."""

import json
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
