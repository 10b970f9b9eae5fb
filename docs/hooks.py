"""Pages that cannot go stale: the first one is the README; tables of settings and repairs are read from the code."""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Put the generated parts in place (called by mkdocs for every page)."""
    if page.file.src_uri == "index.md":
        return readme()
    for marker, table in (("settings", settings), ("nni settings", nni_settings), ("nni repairs", nni_repairs)):
        if f"<!-- {marker} -->" in markdown:
            markdown = markdown.replace(f"<!-- {marker} -->", table())
    return markdown


def readme() -> str:
    """Give the README with its links as seen from docs/; a link to a file outside docs/ becomes plain text."""
    text = (ROOT / "README.md").read_text()
    text = text.replace("](docs/", "](").replace('src="docs/', 'src="')

    def link(found: re.Match[str]) -> str:
        words, target = found[1], found[2].partition("#")[0]
        outside = target and not (ROOT / "docs" / target).exists() and (ROOT / target).exists()
        return words if outside else found[0]

    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!\w+:)([^)\s]+)\)", link, text)


def settings() -> str:
    """Make one row a key of the recipe: its flag, what it may be, its default, and its docstring."""
    from nni_sparsevd.recipe import Recipe

    return _settings(Recipe.model_json_schema())


def nni_settings() -> str:
    """The same for what SparseVDPruner takes."""
    from nni_sparsevd.plugins.nni import SparseVDSettings

    return _settings(SparseVDSettings.model_json_schema())


def nni_repairs() -> str:
    """Make one row a repair of NNI: its name, the release that made it necessary, and its docstring."""
    from nni_sparsevd.plugins.nni.compatibility import REPAIRS

    lines = ["| Repair | Since | Why |", "|---|---|---|"]
    lines += [f"| `{one.name}` | {one.since} | {_cell(one.reason)} |" for one in REPAIRS.values()]
    return "\n".join(lines)


def _settings(schema: dict[str, Any]) -> str:
    lines = ["| Setting | Values | Default | What it does |", "|---|---|---|---|"]
    for part, about in schema["properties"].items():
        if "$ref" not in about:
            lines.append(_row(part, about))
            continue
        kind = schema["$defs"][about["$ref"].rpartition("/")[2]]
        lines.append(f"| **{part}** | | | *{_cell(about['description'])}* |")
        lines += [_row(f"{part}.{key}", field) for key, field in kind["properties"].items()]
    return "\n".join(lines)


def _row(key: str, field: dict[str, Any]) -> str:
    default = field.get("default")
    shown = "" if default is None else f"`{json.dumps(default)}`"
    return f"| `{key}` | {_values(field)} | {shown} | {_cell(field['description'])} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _values(field: dict[str, Any]) -> str:
    """Say a JSON schema in words."""
    if "anyOf" in field:
        return " or ".join(words for words in map(_values, field["anyOf"]) if words)
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field["type"] == "array":
        return f"list of {_values(field['items'])}"
    if field["type"] == "object":
        return f"table of {_values(field['additionalProperties'])}"
    words = {"string": "text", "boolean": "`true`, `false`", "null": ""}.get(field["type"], field["type"])
    words = "path" if field.get("format") == "path" else words
    limits = {"minimum": "≥", "exclusiveMinimum": "&gt;", "maximum": "≤", "exclusiveMaximum": "&lt;"}
    return ", ".join([words, *(f"{sign} {field[name]:g}" for name, sign in limits.items() if name in field)])
