"""What can be done where integers of eight bits cost accuracy, in sentences."""

from typing import Any

FLOAT, INT8 = "float32", "int8"
"""Precisions of the networks in runtimes.json."""
DENSE = "dense"
"""The network there that is not tuned for integers."""
NOTICED_LOSS = 0.005
"""Accuracy that a file of integers has to lose for a sentence to say what can be done."""

REMEDIES = {
    False: ", or tune the network for integers (quantize.aware=true; a run without a twin goes on with --resume)",
    True: ", or tune it for longer (quantize.epochs)",
    None: "",
}
"""Whether the network was tuned for integers, None for the dense one, which cannot be -> what training could do."""


def write_int8_remark(file: str, test: dict[str, Any], float_accuracy: float, *, is_tuned: bool | None) -> str:
    """Write what can be done where integers of eight bits cost accuracy.

    Args:
        file: What the file is called.
        test: How it does on the test photos: `accuracy` and `images`.
        float_accuracy: The accuracy of the same network in float32.
        is_tuned: Whether the network was tuned for integers (`quantize.aware`); None: it is the dense one.

    Returns:
        Two sentences; empty where it loses no more than half a point.
    """
    lost = float_accuracy - test["accuracy"]
    if lost <= NOTICED_LOSS:
        return ""
    photos = round(lost * test["images"])
    return (
        f"{file} loses {100 * lost:.2f} points as int8, {photos:,} of {test['images']:,} test photos. Try more "
        "training photos for the ranges (--calibration=1000), or another runtime, whose quantizer rounds otherwise"
        f"{REMEDIES[is_tuned]}; else keep float32, and take a smaller level of the budget where it is too slow."
    )


def list_int8_remarks(exports: dict[str, Any], runtimes: list[dict[str, Any]], *, is_tuned: bool) -> list[str]:
    """Write the remarks of all files of integers of a run.

    Args:
        exports: The content of exports.json: a row for each file that was exported.
        runtimes: The rows of runtimes.json.
        is_tuned: Whether the small networks were tuned for integers (`quantize.aware`).

    Returns:
        A remark for each file that loses more than half a point.
    """
    remarks = []
    for name, row in exports.items():
        if row.get("test"):
            remarks.append(write_int8_remark(name, row["test"], row["test"]["float_accuracy"], is_tuned=is_tuned))
    float_accuracies = {}
    for row in runtimes:
        if row["precision"] == FLOAT:
            float_accuracies[row["runtime"], row["network"]] = row["accuracy"]
    for row in runtimes:
        float_accuracy = float_accuracies.get((row["runtime"], row["network"]))
        if row["precision"] == INT8 and float_accuracy is not None:
            name = f"{row['network']} in {row['runtime']}"
            is_small = row["network"] != DENSE
            remarks.append(write_int8_remark(name, row, float_accuracy, is_tuned=is_tuned if is_small else None))
    return [remark for remark in remarks if remark]
