"""The tables of docs/export.md, each from the results file of its name."""

from typing import Any


def exports(content: dict[str, Any]) -> list[str]:
    """Largest relative difference of dense, masked and shrunk, and how the file shrinks."""
    rows = content["results"]
    formats = list(dict.fromkeys(row["format"] for row in rows))
    lines = [f"| | {' | '.join(formats)} |", "|---|" + "---|" * len(formats)]
    for model in dict.fromkeys(row["model"] for row in rows):
        own = {row["format"]: row for row in rows if row["model"] == model}
        lines.append(f"| {model} | {' | '.join(_exported(own[name]) for name in formats)} |")
    return lines


def _exported(row: dict[str, Any]) -> str:
    if "failed" in row:
        return str(row["failed"])
    kinds = [row[kind] for kind in ("dense", "masked", "shrunk")]
    if failures := [kind["failed"] for kind in kinds if "failed" in kind]:
        return str(failures[0])
    differences = " / ".join(f"{kind['max_rel']:.0e}" if kind["max_rel"] else "0" for kind in kinds)
    return f"{differences}; {kinds[0]['bytes'] / kinds[2]['bytes']:.1f}× smaller"


def mobile(content: dict[str, Any]) -> list[str]:
    """Before, after, and how many times less."""
    dense, shrunk = content["results"]["dense"], content["results"]["shrunk"]
    lines = ["| | dense | shrunk | less |", "|---|--:|--:|--:|"]
    lines.append(f"| test error | {dense['error_percent']:.2f} % | {shrunk['error_percent']:.2f} % | |")
    for title, key, shown in (
        ("parameters", "parameters", "{:,}"),
        ("MACs of one image", "macs", "{:,}"),
        ("bytes of the .pte", "bytes", "{:,}"),
        ("milliseconds for one image", "milliseconds", "{:.2f}"),
        ("bytes of memory to open and run it", "memory_bytes", "{:,.0f}"),
    ):
        less = f"{dense[key] / shrunk[key]:.1f}×"
        lines.append(f"| {title} | {shown.format(dense[key])} | {shown.format(shrunk[key])} | {less} |")
    return lines


def packed_sizes(content: dict[str, Any]) -> list[str]:
    """Bytes of the dense file, of the masked one compressed, and of ours in every coding, with the error."""
    rows = content["results"]
    codings = list(rows[0]["packed"])
    lines = ["| run | fewer weights | dense | gzip of the masked | xz | " + " | ".join(codings) + " |"]
    lines.append("|---|--:|--:|--:|--:|" + "--:|" * len(codings))
    for row in rows:
        cells = [f"{row[f'{name}_bytes']:,}" for name in ("dense", "gzip", "xz")]
        for coded in row["packed"].values():
            times = row["dense_bytes"] / coded["bytes"]
            cells.append(f"{coded['bytes']:,} ({times:.0f}× smaller, {coded['error_percent']:.2f} %)")
        lines.append(
            f"| {row['run']}, {row['error_percent']:.2f} % | {row['fewer_weights']:.0f}× | {' | '.join(cells)} |"
        )
    return lines


def sparse_kernels(content: dict[str, Any]) -> list[str]:
    """Dense time over sparse time, a row a layer and batch."""
    rows = content["results"]
    zeros = list(rows[0]["faster"])
    lines = ["| layer | batch | " + " | ".join(f"{name} zeros" for name in zeros) + " |"]
    lines.append("|---|--:|" + "--:|" * len(zeros))
    for row in rows:
        cells = [f"{row['faster'][name]:.2f}" for name in zeros]
        lines.append(f"| {row['layer']} | {row['batch']} | {' | '.join(cells)} |")
    return lines
