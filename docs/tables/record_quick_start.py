"""Run the Python of README.md, record what it prints, and draw the picture of the network before and after.

Run: `python docs/tables/record_quick_start.py [--draw]`, then `python docs/tables/write.py`.  `--draw` only draws.
"""

import contextlib
import io
import json
import re
import sys
import tempfile
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from nni_sparsevd.training.environment import describe_environment
from reading import PICTURES, RESULTS, ROOT, read_results

CELL = 0.052
"""Inches that one connection takes in the picture, in both networks."""
STRIP = 0.12
"""Inches that the first layer takes, which has one input."""
GAP = 0.08
TOP = 2.6
"""Height in inches at which both networks begin."""


def record() -> None:
    """Write docs/results/quick_start.json: the output, and how strong the connections between channels are."""
    code = re.search(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert code is not None
    torch.set_num_threads(1)
    printed = io.StringIO()
    namespace: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        exec(code[1], namespace)
    cuts = namespace["plan"].cuts
    removed = [list(cuts[(f"{name}.weight", 0)]) for name in ("0", "4")]
    values = {
        "output": printed.getvalue().splitlines(),
        "networks": {
            "before": {"strengths": strengths(namespace["model"]), "removed": removed},
            "after": {"strengths": strengths(namespace["small"]), "removed": [[], []]},
        },
        "environment": describe_environment(["docs/tables/record_quick_start.py"], 0),
    }
    (RESULTS / "quick_start.json").write_text(json.dumps(values) + "\n")


def strengths(model: nn.Module) -> list[list[list[float]]]:
    """The norm of each kernel, layer by layer; rows are output channels, columns input channels."""
    layers = [module for module in model if isinstance(module, nn.Conv2d | nn.Linear)]
    tables, inputs = [], 1
    for layer in layers:
        weight = layer.weight.detach()
        norms = weight.reshape(len(weight), inputs, -1).norm(dim=2)
        tables.append([[round(norm, 4) for norm in line] for line in norms.tolist()])
        inputs = len(weight)
    return tables


def draw() -> None:
    """Draw docs/pictures/before_after.png from the results file: both networks at the same scale."""
    values = read_results("quick_start")
    figure = Figure(figsize=(8.4, 3.42), dpi=140)
    figure.patch.set_facecolor("white")
    for left, name in ((0.3, "before"), (5.1, "after")):
        line = next(line for line in values["output"] if line.startswith(f"{name}:"))
        parameters, macs, error = re.findall(r"[\d,.]*\d", line)
        write(figure, left, TOP + 0.62, name, size=12, weight="bold")
        write(figure, left, TOP + 0.38, f"{parameters} parameters, {macs} MACs, {error} % error", size=9)
        draw_network(figure, left, values["networks"][name])
    write(figure, 5.1, 0.42, "a square: the connection of two channels")
    write(figure, 5.1, 0.28, "pale red: channels that training found to be noise")
    write(figure, 4.4, 1.75, "→", size=30, color="#3f51b5", ha="center", va="center")
    figure.savefig(PICTURES / "before_after.png")


def draw_network(figure: Figure, left: float, network: dict[str, Any]) -> None:
    """Draw the three layers so that a channel has one row, or one column, in all that write or read it."""
    first, second, last = (torch.tensor(table) for table in network["strengths"])
    first_removed, second_removed = network["removed"]
    second_left = left + STRIP + GAP
    height, width = len(first) * CELL, len(second) * CELL
    below = TOP - height - GAP
    draw_layer(figure, (left, TOP, STRIP, height), first, first_removed, [])
    draw_layer(figure, (second_left, TOP, width, height), second.T, first_removed, second_removed)
    draw_layer(figure, (second_left, below, width, len(last) * CELL), last, [], second_removed)
    write(figure, second_left, TOP + 0.05, f"convolutions 1 → {len(first)} → {len(second)} channels", color="gray")
    write(figure, second_left, below - len(last) * CELL - 0.15, f"linear layer → {len(last)} classes", color="gray")


def draw_layer(
    figure: Figure,
    box: tuple[float, float, float, float],
    table: Tensor,
    removed_rows: list[int],
    removed_columns: list[int],
) -> None:
    """Draw one layer into (left, top, width, height), all in inches; what is removed is pale red."""
    left, top, width, height = box
    figure_width, figure_height = figure.get_size_inches()
    place = (left / figure_width, (top - height) / figure_height, width / figure_width, height / figure_height)
    axes = figure.add_axes(place)
    noise = torch.full_like(table, torch.nan)
    noise[removed_rows] = 1.0
    noise[:, removed_columns] = 1.0
    axes.imshow(table / table.max(), cmap="Blues", vmin=-0.3, vmax=1, interpolation="nearest", aspect="auto")
    axes.imshow(noise, cmap="Reds", vmin=0, vmax=6, interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])


def write(figure: Figure, left: float, bottom: float, text: str, size: float = 7.5, **style: Any) -> None:
    width, height = figure.get_size_inches()
    figure.text(left / width, bottom / height, text, size=size, **style)


if __name__ == "__main__":
    if "--draw" not in sys.argv:
        record()
    draw()
