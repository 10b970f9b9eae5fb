"""The tables about NNI and Torch-Pruning, each from the results file of its name."""

from typing import Any

from reading import head, row


def nni_mnist(content: dict[str, Any]) -> list[str]:
    """LeNet-300-100 through NNI: error and compression at each threshold."""
    lines = head("threshold", "dense error %", "error %", "weights", "fewer", "seconds", words=0)
    for run in content["results"]:
        weights, kept = run["weights"], run["kept"]
        lines.append(
            row(
                [
                    f"{run['threshold']:g}",
                    f"{run['dense_error_percent']:.2f}",
                    f"{run['error_percent']:.2f}",
                    f"{weights:,} → {kept:,}",
                    f"{weights / kept:.1f}×",
                    f"{run['seconds']:.0f}",
                ]
            )
        )
    return lines


def nni_speedup(content: dict[str, Any]) -> list[str]:
    """Difference, parameters and seconds of each way to make a masked network smaller, by network."""
    results = content["results"]
    lines = head("network, input", "parameters", *results[0]["ways"])
    for network in results:
        cells = [_speedup(way, values) for way, values in network["ways"].items()]
        size = "×".join(str(length) for length in network["input"])
        lines.append(row([f"{network['network']}, {size}", f"{network['parameters']:,}", *cells]))
    return lines


def _speedup(way: str, values: dict[str, Any]) -> str:
    # `silence` changes the function that the small network must keep: its difference is from the changed network
    difference = values["check"]["max_rel_32"] if "silence" in way else values["difference"]
    return f"{difference:.2g} · {values['parameters']:,} · {values['seconds']:.1f} s"


def nni_conformance(content: dict[str, Any]) -> list[str]:
    """On how many networks a step works, by step and pruner."""
    networks = content["networks"]
    steps = next(iter(networks.values()))
    pruners = list(next(iter(steps.values())))
    names = [pruner.replace("NormPruner", "").replace("Pruner", "").replace("SparseVD, ", "") for pruner in pruners]
    lines = head("", *names, words=1 + len(names))
    for step in steps:
        passed = [sum(not errors[step][pruner] for errors in networks.values()) for pruner in pruners]
        cells = [str(count) if count == len(networks) else f"**{count}**" for count in passed]
        lines.append(row([step, *cells]))
    return lines


def torch_pruning_conformance(content: dict[str, Any]) -> list[str]:
    """How far each importance and pruner gets, by network."""
    networks = content["networks"]
    lines = head("importance, pruner", *networks, words=1 + len(networks))
    for pruner in next(iter(networks.values())):
        lines.append(row([pruner, *(_verdict(errors[pruner]) for errors in networks.values())]))
    return lines


def _verdict(cells: dict[str, str]) -> str:
    """How far it gets: the first column that is not empty, and why."""
    for column, wrong in cells.items():
        if wrong:
            reason = wrong if len(wrong) <= 40 else f"{wrong[:40]}…"
            return reason if column == "exact" else f"**{column}**: {reason}"
    return "exact"


def cifar10_budget(content: dict[str, Any]) -> list[str]:
    """Half of the MACs: error and size of each method."""
    lines = head("", "error %", "after the cut %", "MACs", "of the budget", "parameters", "latency ÷")
    for name, run in content.items():
        if not isinstance(run, dict) or "macs" not in run:  # settings and environment
            continue
        after_cut = f"{run['error_after_cut']:.2f}" if "error_after_cut" in run else ""
        off = f"{run['off_percent']:+.2f} %" if "off_percent" in run else ""
        lines.append(
            row(
                [
                    name,
                    f"{run['error_percent']:.2f}",
                    after_cut,
                    f"{run['macs']:,}",
                    off,
                    f"{run['parameters']:,}",
                    f"{run['latency_ratio']:.2f}",
                ]
            )
        )
    return lines
