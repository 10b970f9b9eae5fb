"""The tables that are about time, each from the results file of its name."""

from typing import Any

RUNTIMES = {
    "eager": "PyTorch eager", "compile": "torch.compile", "onnxruntime": "ONNX Runtime", "executorch": "ExecuTorch",
    "litert": "LiteRT",
}  # fmt: skip


def pass_speed(content: dict[str, Any]) -> list[str]:
    """Seconds of tracing and shrinking, ours and the peers'."""
    results = content["results"]
    ways = list(results[0]["ways"])
    lines = ["| network, input | " + " | ".join(ways) + " |", "|---|" + "--:|" * len(ways)]
    for row in results:
        cells = []
        for name in ways:
            way = row["ways"].get(name, {"error": ""})
            seconds = f"{way['seconds']:.2f}" if "seconds" in way else "fails" if way["error"] else "not tried"
            cells.append(f"{seconds} (does not run)" if way["error"].startswith("forward") else seconds)
        lines.append(f"| {row['network']}, {row['input']} | {' | '.join(cells)} |")
    return lines


def kept_memory(content: dict[str, Any]) -> list[str]:
    """What a step takes when freed memory is given back to the system, and when it is kept."""
    lines = [
        "| network, batch | processes | seconds, given back | kept | times faster | MiB, given back | kept |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in content["results"]:
        before, after = row["seconds"]
        cells = [f"{row['network']} at {row['size']} pixels, {row['batch']}", str(row["processes"])]
        cells += [f"{before:.3f}", f"{after:.3f}", f"{before / after:.2f}"]
        cells += [f"{mebibytes:,.0f}" for mebibytes in row["mebibytes"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def drawn_sizes(content: dict[str, Any]) -> list[str]:
    """What became of random networks whose operators depend on the size of the input."""
    kinds = ("shrunk", "kept whole", "refused", "wrong")
    lines = [f"| networks | {' | '.join(kinds)} |", "|--:|" + "--:|" * len(kinds)]
    return [*lines, f"| {content['networks']:,} | {' | '.join(str(content[kind]) for kind in kinds)} |"]


def zoo_latency(content: dict[str, Any]) -> list[str]:
    """Milliseconds before and after, by runtime."""
    rows = content["results"]
    runtimes = {name: title for name, title in RUNTIMES.items() if name in rows[0]}
    lines = [
        f"| network | parameters | MACs ÷ | {' | '.join(runtimes.values())} |",
        "|---|--:|--:|" + "--:|" * len(runtimes),
    ]
    for row in rows:
        cells = []
        for runtime in runtimes:
            times = row[runtime]
            if "faster" in times:
                cells.append(f"{times['whole']:.1f} → {times['small']:.1f}, {times['faster']:.2f}×")
            else:
                cells.append("fails")
        before, after = row["parameters"]
        fewer = row["macs"][0] / row["macs"][1]
        lines.append(f"| {row['network']} | {before:,} → {after:,} | {fewer:.2f} | {' | '.join(cells)} |")
    return lines


def time_to_result(content: dict[str, Any]) -> list[str]:
    """What a processor budget buys."""
    results = content["results"]
    lines = ["| processor seconds | library | steps | error % | times fewer weights |", "|--:|---|--:|--:|--:|"]
    for row in sorted(results, key=lambda row: (row["budget"], row["seed"])):
        lines.append(
            f"| {row['budget']:g} | {row['library']} | {row['steps']:,} | {row['error']:.2f} | "
            f"{row['compression']:.0f} |"
        )
    return lines
