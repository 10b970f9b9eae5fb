"""Tables of single runs of `compress`, each from the results file of its name."""

from typing import Any


def photos_budget(content: dict[str, Any]) -> list[str]:
    """The dense network beside the shrunk one: what they get right, and what they cost."""
    lines = ["| | dense, before the sparse stage | shrunk |", "|---|--:|--:|"]
    dense, shrunk = content["test"]["dense"], content["test"]["shrunk"]
    lines.append(f"| test photos named right | {100 * dense['accuracy']:.2f} % | {100 * shrunk['accuracy']:.2f} % |")
    sizes = content["size"]["dense"], content["size"]["shrunk"]
    for title, key, form in (
        ("multiply-accumulates", "macs", "{:,}"),
        ("parameters", "parameters", "{:,}"),
        ("bytes of the file", "file_bytes", "{:,}"),
        ("milliseconds in PyTorch, one photo, one thread", "latency_ms", "{:.1f}"),
    ):
        cells = [form.format(size[key]) for size in sizes]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines
