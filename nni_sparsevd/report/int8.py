"""What can be done where integers of eight bits cost accuracy, in sentences."""

from typing import Any

FLOAT, INT8 = "float32", "int8"
"""Precisions of the networks in runtimes.json."""
NOTICED_LOSS = 0.005
"""Accuracy that a file of integers has to lose for a sentence to say what can be done."""


def write_int8_remark(file: str, test: dict[str, Any], float_accuracy: float) -> str:
    """Write what can be done where integers of eight bits cost accuracy.

    Args:
        file: What the file is called.
        test: How it does on the test photos: `accuracy` and `images`.
        float_accuracy: The accuracy of the same network in float32.

    Returns:
        Two sentences; empty where it loses no more than half a point.
    """
    lost = float_accuracy - test["accuracy"]
    if lost <= NOTICED_LOSS:
        return ""
    photos = round(lost * test["images"])
    return (
        f"{file} loses {100 * lost:.2f} points as int8, {photos:,} of {test['images']:,} test photos. Try more "
        "training photos for the ranges (--calibration=1000), or another runtime, whose quantizer rounds otherwise; "
        "else keep float32, and take a smaller level of the budget where it is too slow."
    )


def list_int8_remarks(exports: dict[str, Any], runtimes: list[dict[str, Any]]) -> list[str]:
    """Write the remarks of all files of integers of a run.

    Args:
        exports: The content of exports.json: a row for each file that was exported.
        runtimes: The rows of runtimes.json.

    Returns:
        A remark for each file that loses more than half a point.
    """
    remarks = []
    for name, row in exports.items():
        if row.get("test"):
            remarks.append(write_int8_remark(name, row["test"], row["test"]["float_accuracy"]))
    float_accuracies = {}
    for row in runtimes:
        if row["precision"] == FLOAT:
            float_accuracies[row["runtime"], row["network"]] = row["accuracy"]
    for row in runtimes:
        float_accuracy = float_accuracies.get((row["runtime"], row["network"]))
        if row["precision"] == INT8 and float_accuracy is not None:
            remarks.append(write_int8_remark(f"{row['network']} in {row['runtime']}", row, float_accuracy))
    return [remark for remark in remarks if remark]
