"""The tables of settings and repairs, each from the code that has them."""

import json
from typing import Any

from reading import head, row


def settings() -> list[str]:
    """One row a key of the recipe: its flag, what it may be, its default, and its docstring."""
    from nni_sparsevd.recipe import Recipe

    return _settings(Recipe.model_json_schema())


def nni_settings() -> list[str]:
    """The same for what SparseVDPruner takes."""
    from nni_sparsevd.plugins.nni import SparseVDSettings

    return _settings(SparseVDSettings.model_json_schema())


def nni_repairs() -> list[str]:
    """One row a repair of NNI: its name, the release that made it necessary, and its docstring."""
    from nni_sparsevd.plugins.nni.compatibility import REPAIRS

    lines = head("Repair", "Since", "Why", words=3)
    for repair in REPAIRS.values():
        lines.append(row([f"`{repair.name}`", repair.since, _escape(repair.reason)]))
    return lines


TABLES = {"settings": settings, "nni_settings": nni_settings, "nni_repairs": nni_repairs}


def _settings(schema: dict[str, Any]) -> list[str]:
    lines = head("Setting", "Values", "Default", "What it does", words=4)
    for part, about in schema["properties"].items():
        if "$ref" not in about:
            lines.append(_setting(part, about))
            continue
        kind = schema["$defs"][about["$ref"].rpartition("/")[2]]
        lines.append(row([f"**{part}**", "", "", f"*{_escape(_first_paragraph(kind))}*"]))
        for key, field in kind["properties"].items():
            lines.append(_setting(f"{part}.{key}", field))
    return lines


def _setting(key: str, field: dict[str, Any]) -> str:
    default = field.get("default")
    shown = "" if default is None else f"`{json.dumps(default)}`"
    return row([f"`{key}`", _describe_values(field), shown, _escape(field["description"])])


def _first_paragraph(kind: dict[str, Any]) -> str:
    """What the settings of a table are for; their docstring may go on with an example."""
    return str(kind["description"]).partition("\n\n")[0]


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _describe_values(field: dict[str, Any]) -> str:
    """Say in words which values a JSON schema allows."""
    if "anyOf" in field:
        kinds = [_describe_values(kind) for kind in field["anyOf"]]
        return " or ".join(kind for kind in kinds if kind)
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "prefixItems" in field:
        return f"list of {len(field['prefixItems'])} numbers"
    if field["type"] == "array":
        return f"list of {_describe_values(field['items'])}"
    if field["type"] == "object":
        return f"table of {_describe_values(field['additionalProperties'])}"
    return ", ".join([_describe_type(field), *_describe_limits(field)])


def _describe_type(field: dict[str, Any]) -> str:
    if field.get("format") == "path":
        return "path"
    names = {"string": "text", "boolean": "`true`, `false`", "null": ""}
    return names.get(field["type"], field["type"])


def _describe_limits(field: dict[str, Any]) -> list[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": "&gt;", "maximum": "≤", "exclusiveMaximum": "&lt;"}
    return [f"{sign} {field[name]:g}" for name, sign in signs.items() if name in field]
