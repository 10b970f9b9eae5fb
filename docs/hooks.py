"""Pages of the site that stand elsewhere: the first page is README.md, the tutorials are notebooks."""

import re
from typing import Any

from mkdocs.structure.files import File, Files

import notebooks

ROOT = notebooks.NOTEBOOKS.parents[1]
WIDE = ("league", "zoo")
"""Beginnings of the names of pages whose tables take the place of the table of contents."""


def on_files(files: Files, *, config: Any) -> Files:
    """Add a page for each notebook (called by mkdocs once it knows its own files)."""
    for path in sorted(notebooks.NOTEBOOKS.glob("*.ipynb")):
        page = notebooks.to_markdown(
            notebooks.read(path), str(path.relative_to(ROOT))
        )
        files.append(
            File.generated(config, f"tutorial_{path.stem}.md", content=page)
        )
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Put the README in the place of the first page (called by mkdocs for every page)."""
    if page.file.src_uri.startswith(WIDE):
        page.meta["hide"] = ["toc"]
    return adapt_readme() if page.file.src_uri == "index.md" else markdown


def adapt_readme() -> str:
    """Give the README with its links as seen from docs/; a link to a file outside docs/ becomes plain text."""
    text = (ROOT / "README.md").read_text()
    text = text.replace("](docs/", "](").replace('src="docs/', 'src="')

    def adapt_link(link: re.Match[str]) -> str:
        title, target = link[1], link[2].partition("#")[0]
        outside = (
            target
            and not (ROOT / "docs" / target).exists()
            and (ROOT / target).exists()
        )
        return title if outside else link[0]

    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!\w+:)([^)\s]+)\)", adapt_link, text)
