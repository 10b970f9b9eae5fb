"""Write the tables of README.md anew from docs/results/*.json: `python examples/tables.py [--check]`.

`--collect RUN` first copies the results of a run folder there.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
TITLES = {
    "lenet_300_100_mnist": "LeNet-300-100, MNIST, threshold 3",
    "lenet_300_100_mnist_small": "LeNet-300-100, MNIST, threshold 1",
    "lenet5_caffe_mnist": "LeNet-5-Caffe, MNIST",
    "resnet18_cifar10": "ResNet-18 ¼ width, CIFAR-10 (JPEG), channels",
}


def collect(run: Path) -> None:
    """Copy what the tables need of a run folder to docs/results."""
    values = {**read(run / "result.json"), "environment": read(run / "environment.json")}
    values["curve"] = read(run / "curve.json")
    (RESULTS / f"{run.name}.json").write_text(json.dumps(values, indent=1) + "\n")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def compression() -> list[str]:
    lines = ["| run | dense error % | error % | weights | fewer | parameters after shrinking | MACs ÷ | latency ÷ |"]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name, title in TITLES.items():
        if not (RESULTS / f"{name}.json").exists():
            continue
        row = read(RESULTS / f"{name}.json")
        dense, small = row["size"]["dense"], row["size"]["shrunk"]
        lines.append(
            f"| {title} | {row['test']['dense']['error_percent']:.2f} | {row['test']['shrunk']['error_percent']:.2f} | "
            f"{row['weights']['total']:,} → {row['weights']['kept']:,} | {row['weights']['compression']:.1f}× | "
            f"{small['parameters']:,} | {dense['macs'] / small['macs']:.2f} | "
            f"{dense['latency_ms'] / small['latency_ms']:.2f} |"
        )
    return lines


def step_cost() -> list[str]:
    results = read(RESULTS / "step_cost.json")["results"]
    variants = [variant for variant in next(iter(results.values())) if variant != "dense"]
    lines = ["| network | " + " | ".join(variants) + " |", "|---|" + "--:|" * len(variants)]
    for network, rows in results.items():
        lines.append(f"| {network} | " + " | ".join(f"{rows[variant]['ratio']:.2f}" for variant in variants) + " |")
    return lines


TABLES: dict[str, Callable[[], list[str]]] = {"compression": compression, "step_cost": step_cost}


def rendered(text: str) -> str:
    """`text` with what stands between the markers of each table replaced."""
    for name, table in TABLES.items():
        start, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        if start in text:
            before, rest = text.split(start)
            text = before + "\n".join([start, *table(), end]) + rest.split(end)[1]
    return text


def main(arguments: list[str]) -> int:
    if "--collect" in arguments:
        collect(Path(arguments[arguments.index("--collect") + 1]))
    readme = ROOT / "README.md"
    text = rendered(readme.read_text())
    if "--check" in arguments:
        return int(text != readme.read_text())
    readme.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
