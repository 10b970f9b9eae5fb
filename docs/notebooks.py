"""Notebooks without Jupyter: read them, run their cells in one namespace, and write them as pages.

Run: `python docs/notebooks.py [NAME]` runs all notebooks of examples/notebooks/, or one, and keeps what they print.
"""

import contextlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOKS = Path(__file__).parents[1] / "examples" / "notebooks"
Notebook = dict[str, Any]


def read(path: Path) -> Notebook:
    notebook: Notebook = json.loads(path.read_text())
    return notebook


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def printed_by(cell: dict[str, Any]) -> str:
    """What a code cell printed when it was last run."""
    return "".join("".join(output["text"]) for output in cell["outputs"])


def run(notebook: Notebook) -> list[str]:
    """Run the code cells in order, in the present folder, and give what each of them prints."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    printed = []
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(compile(source(cell), f"cell {number}", "exec"), namespace)
        printed.append(output.getvalue())
    return printed


def with_outputs(notebook: Notebook, printed: list[str]) -> Notebook:
    """The notebook with what its code cells print."""
    texts = iter(printed)
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            lines = next(texts).splitlines(keepends=True)
            stream = {"name": "stdout", "output_type": "stream", "text": lines}
            cell = {
                **cell,
                "execution_count": None,
                "outputs": [stream] if lines else [],
            }
        cells.append(cell)
    return {**notebook, "cells": cells}


def to_markdown(notebook: Notebook, address: str) -> str:
    """A page of the site: text, code, and what the code printed."""
    parts = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            parts.append(source(cell))
            continue
        parts.append(f"```python\n{source(cell)}\n```")
        if printed := printed_by(cell):
            parts.append(f"```text\n{printed.rstrip()}\n```")
    parts.append(f"This page is the notebook `{address}`.")
    return "\n\n".join(parts) + "\n"


def main(names: list[str]) -> None:
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        notebook = read(path)
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            notebook = with_outputs(notebook, run(notebook))
        path.write_text(
            json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
