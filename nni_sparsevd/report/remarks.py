"""Sentences about the results of a run: what a reader has to know first."""

from typing import Any

NOTICED = 1.05
"""How many times cheaper a network has to be for the first line to say so."""

SPOILED = 0.5
"""Part of the dense network's accuracy below which the first remark says that too much was removed."""


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
        "fewer weights": result["weights"]["compression"] if result["weights"]["kept"] else 0.0,
    }
    ratios |= _list_speedups(result)
    gains = [f"{ratio:.1f}× {unit}" for unit, ratio in ratios.items() if ratio > NOTICED]
    compared, words = ("twin", "its dense twin") if "twin" in result["test"] else ("dense", "before")
    before, after = (100 - result["test"][name]["error_percent"] for name in (compared, "shrunk"))
    return (
        f"{result['model']}: {', '.join(gains) or 'no cheaper'}; {after:.2f} % of the test images right, "
        f"{before:.2f} % {words}."
    )


def _list_speedups(result: dict[str, Any]) -> dict[str, float]:
    """Where it is faster -> how many times: where a budget of latency is measured, or else in PyTorch."""
    budget = result.get("budget")
    if budget and budget["kind"].startswith("latency"):
        runtime = budget["kind"].removeprefix("latency in ")
        (reached,) = (row["reached"] for row in budget["levels"] if row["part"] == result["level"])
        return {f"as fast in {runtime} on one thread": budget["dense"] / reached}
    if _has_the_dense_layers(result["size"]):
        return {}
    dense, small = (result["size"][name]["latency_ms"] for name in ("dense", "shrunk"))
    return {"as fast in PyTorch on one thread": dense / small}


def _has_the_dense_layers(size: dict[str, Any]) -> bool:
    """Whether the shrunk network computes all that the dense one does: if its latency differs, that is chance."""
    return all(size["shrunk"][key] == size["dense"][key] for key in ("parameters", "macs"))


def write_remarks(result: dict[str, Any]) -> list[str]:
    """Write what a table of results does not say by itself.

    Args:
        result: The content of result.json.

    Returns:
        Sentences, the most important first: that nothing was removed, or too much, whether the budget was met, which
        network is that of the run, that the smaller network is slower, and what the dense network is.
    """
    remarks = []
    removed_channels = sum(group["removed"] for group in result["plan"])
    if result["weights"]["kept"] == result["weights"]["total"] and not removed_channels:
        remarks.append(
            "Nothing was removed: no weight or channel reached the threshold. Train the sparse stage longer or with a "
            "higher rate, raise sparse.kl_coefficient, or set a budget."
        )
    test, weights = result["test"], result["weights"]
    if test["shrunk"]["accuracy"] < SPOILED * test["dense"]["accuracy"]:
        before, after = (100 * test[name]["accuracy"] for name in ("dense", "shrunk"))
        remarks.append(
            f"Too much was removed: {weights['kept']:,} of {weights['total']:,} weights are left, and {after:.2f} % of "
            f"the test images right, {before:.2f} % before. Ask for less, lower sparse.kl_coefficient, or fine-tune "
            "for longer."
        )
    if result.get("budget"):
        remarks.extend(_describe_budget(result["budget"], result["front"], result["level"]))
    dense, small = (result["size"][name]["latency_ms"] for name in ("dense", "shrunk"))
    if small > 1.02 * dense and not _has_the_dense_layers(result["size"]):
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


def _describe_budget(budget: dict[str, Any], front: list[dict[str, Any]], level: float) -> list[str]:
    """Whether each level of the budget was met, and why the network of the run is the one that it is."""
    left = ", ".join(f"{row['reached'] / budget['dense']:.3f}" for row in budget["levels"])
    allowed = ", ".join(f"{row['part']:g}" for row in budget["levels"])
    remarks = [f"Budget: {left} of the dense network's {budget['kind']} are left, {allowed} were allowed."]
    if budget["missed"]:
        remarks.insert(0, f"{budget['missed']}.")
    if front:
        remarks.append(
            f"The network of this run is that of level {level:g}: {_explain_choice(budget, front)} Choose another one "
            "with --level."
        )
    elif not budget.get("is_within_tolerance", True):  # results of earlier versions do not say it
        remarks.append(
            f"On held-out photos it loses more than {_write_points(budget['tolerance'])}, which is what "
            "budget.tolerance allows. Train longer (sparse.epochs, finetune.epochs), or take a larger level."
        )
    return remarks


def _write_points(part: float) -> str:
    """A part of the images in words: 1 point, 0.5 points."""
    points = f"{100 * part:g}"
    return "1 point" if points == "1" else f"{points} points"


def _explain_choice(budget: dict[str, Any], front: list[dict[str, Any]]) -> str:
    """Why the network of the run is the one that it is, by accuracies on held-out photos."""
    chosen = next(row for row in front if row["chosen"])
    best = max(front, key=lambda row: row["held_out"])  # the dense one among equals
    distance = _write_points(budget["tolerance"])
    if chosen is best:
        return (
            f"the most accurate of the run on held-out photos ({100 * chosen['held_out']:.2f} %), and no smaller one "
            f"is within {distance} of it."
        )
    if best["level"] is None:
        name = "its dense twin" if best["network"] == "twin" else "the dense one"
    else:
        name = f"level {best['level']:g}, the most accurate of the run,"
    why = "the smallest within" if budget["is_within_tolerance"] else "none is within"
    return (
        f"{why} {distance} of {name} on held-out photos ({100 * chosen['held_out']:.2f} %, against "
        f"{100 * best['held_out']:.2f} %)."
    )
