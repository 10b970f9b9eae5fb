"""Tables of single runs of `compress`, each from the results file of its name."""

from typing import Any


def photos_budget(content: dict[str, Any]) -> list[str]:
    """The dense network beside the shrunk ones: what they get right, and what they cost."""
    networks = _list_networks(content)
    lines = [f"| | {' | '.join(networks)} |", f"|---|{'--:|' * len(networks)}"]
    for title, key, form in (
        ("test photos named right", "test", "{:.2%}"),
        ("multiply-accumulates", "macs", "{:,}"),
        ("parameters", "parameters", "{:,}"),
        ("bytes of the file", "file_bytes", "{:,}"),
        ("milliseconds in PyTorch, one photo, one thread", "latency_ms", "{:.1f}"),
    ):
        cells = [form.format(row[key]).replace("%", " %") for row in networks.values()]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def _list_networks(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Title of a column -> what is said of the network: the dense one, its twin, and each level of the budget."""
    size, test = content["size"], content["test"]
    networks = {"dense, before the sparse stage": {**size["dense"], "test": test["dense"]["accuracy"]}}
    if "twin" in test:
        networks["dense twin"] = {**size["dense"], "test": test["twin"]["accuracy"]}
    # The first row of a front is the dense network.
    for row in content.get("front", [])[1:]:
        networks[f"{row['level']:g}"] = row
    if not content.get("front"):
        networks["shrunk"] = {**size["shrunk"], "test": test["shrunk"]["accuracy"]}
    return networks


def photos_budget_runtimes(content: dict[str, Any]) -> list[str]:
    """Each network in each runtime, as floats and as integers."""
    lines = ["| runtime | network | precision | bytes | ms | dense ÷ this | test photos named right |"]
    lines.append("|---|---|---|--:|--:|--:|--:|")
    for row in content["rows"]:
        cells = [row["runtime"], row["network"], row["precision"], f"{row['bytes']:,}", f"{row['milliseconds']:.2f}"]
        cells += [f"{row['times_faster']:.2f}", f"{100 * row['accuracy']:.2f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def budget_noise(content: dict[str, Any]) -> list[str]:
    """Held-out accuracy after each epoch of the sparse stage, with the gates' noise and at their means."""
    lines = []
    for run in content["runs"]:
        epochs = range(1, len(run["with_noise"]) + 1)
        lines += [f"| {run['title']} | {' | '.join(f'epoch {epoch}' for epoch in epochs)} |"]
        lines += [f"|---|{'--:|' * len(epochs)}"]
        for title, key in (("with noise", "with_noise"), ("at the means", "at_the_means")):
            lines.append(f"| {title} | {' | '.join(f'{100 * accuracy:.1f} %' for accuracy in run[key])} |")
        lines.append("")
    return lines[:-1]


def budget_multiples(content: dict[str, Any]) -> list[str]:
    """Latency of networks of equal MACs, by what their channel counts are multiples of."""
    titles = {"onnxruntime": "ONNX Runtime", "pytorch": "PyTorch"}
    runtimes = list(content["rows"][0]["latency"])
    lines = [f"| MACs left | multiples of | {' | '.join(titles[runtime] for runtime in runtimes)} |"]
    lines.append(f"|--:|--:|{'--:|' * len(runtimes)}")
    for row in content["rows"]:
        cells = [f"{100 * row['macs']:.1f} %", f"{row['multiple']}"]
        cells += [f"{100 * row['latency'][runtime]:.0f} %" for runtime in runtimes]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def budget_ranking(content: dict[str, Any]) -> list[str]:
    """What each way to rank channels leaves, by level."""
    titles = ["times fewer MACs", "rank, over the cost", "parameters", "held-out photos right", "before tuning"]
    lines = [f"| {' | '.join(titles)} |", "|--:|---|--:|--:|--:|"]
    for row in sorted(content["rows"], key=lambda row: row["level"]):
        cells = [f"{row['level']:g}", row["way"], f"{row['parameters']:,}"]
        cells += [f"{100 * row[key]:.1f} %" for key in ("held_out", "untuned")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
