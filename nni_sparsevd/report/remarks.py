"""What somebody who reads the results of a run has to know first, in sentences."""

from typing import Any

NOTICED = 1.05
"""How many times cheaper a network has to be for the first line to say so."""


def write_answer(result: dict[str, Any]) -> str:
    """Write the first line of a report: what the run made, how much cheaper it is, and what that costs.

    Args:
        result: The content of result.json.

    Returns:
        A sentence.
    """
    dense, small = result["size"]["dense"], result["size"]["shrunk"]
    ratios = {
        "fewer MACs": dense["macs"] / max(small["macs"], 1),
        "fewer parameters": dense["parameters"] / small["parameters"],
        "fewer weights": result["weights"]["compression"],
        "as fast in PyTorch on one thread": dense["latency_ms"] / small["latency_ms"],
    }
    gains = [f"{ratio:.1f}× {unit}" for unit, ratio in ratios.items() if ratio > NOTICED]
    compared, words = ("twin", "its dense twin") if "twin" in result["test"] else ("dense", "before")
    before, after = (100 - result["test"][name]["error_percent"] for name in (compared, "shrunk"))
    return (
        f"{result['model']}: {', '.join(gains) or 'no cheaper'}; {after:.2f} % of the test images right, "
        f"{before:.2f} % {words}."
    )


def write_remarks(result: dict[str, Any]) -> list[str]:
    """Write what a table of results does not say by itself.

    Args:
        result: The content of result.json.

    Returns:
        Sentences, the most important first: that nothing was removed, whether the budget was met, that the smaller
        network is slower, and what the dense network is.
    """
    remarks = []
    removed_channels = sum(group["removed"] for group in result["plan"])
    if result["weights"]["kept"] == result["weights"]["total"] and not removed_channels:
        remarks.append(
            "Nothing was removed: no weight or channel reached the threshold. Train the sparse stage longer or with a "
            "higher rate, raise sparse.kl_coefficient, or set a budget."
        )
    budget = result.get("budget")
    if budget:
        part = budget["reached"] / budget["dense"]
        remarks.append(
            f"Budget: {part:.3f} of the dense network's {budget['kind']} are left, {budget['fraction']:g} were allowed."
        )
    dense, small = (result["size"][name]["latency_ms"] for name in ("dense", "shrunk"))
    if small > 1.02 * dense:
        remarks.append(
            f"The shrunk network is slower on this machine: {small:.3f} ms for one image, the dense one {dense:.3f} ms."
        )
    remarks.append(_compare_with_dense(result["test"]))
    return remarks


def _compare_with_dense(test: dict[str, Any]) -> str:
    """What the shrunk network loses against a dense one that was trained as long, or that there is none."""
    if "twin" not in test:
        return (
            "The dense network is the one before the sparse stage: it was trained for fewer epochs than the shrunk "
            "one. With twin = true it is trained on for as many, to compare like with like."
        )
    twin, small = (100 * test[name]["accuracy"] for name in ("twin", "shrunk"))
    change = f"loses {twin - small:.2f} points" if small < twin else f"gains {small - twin:.2f} points"
    return (
        f"Against its dense twin, which was trained for as many epochs with the same settings, the shrunk network "
        f"{change} of test accuracy: {twin:.2f} -> {small:.2f} %. The dense network is the one before the sparse stage."
    )
