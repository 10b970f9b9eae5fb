"""Every exporter on many networks: dense, masked and shrunk.

Run: `python examples/benchmarks/exports.py OUT.json`

A row a network and format, each in a process of its own; rows that OUT.json has are not made again.
"""

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from jsonargparse import auto_cli
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.errors import SparseVDError, summarize_error
from nni_sparsevd.export import FORMATS, export
from nni_sparsevd.files import read_json, write_json
from nni_sparsevd.masks import apply_masks_
from nni_sparsevd.studies.processes import Limits, run_isolated
from nni_sparsevd.studies.zoo import torchvision_networks, transformers_networks
from nni_sparsevd.studies.zoo.trials import mask_channels
from nni_sparsevd.testing import randomize_, settle_
from nni_sparsevd.training.environment import describe_environment

SIDES = {
    "resnet18": 64, "mobilenetv3_small_100": 64, "efficientnet_b0": 64, "regnety_002": 64, "convnext_atto": 64,
    "densenet121": 64, "ghostnet_100": 64, "vgg11_bn": 64, "deit_tiny_patch16_224": 224, "mixer_s32_224": 224,
}  # fmt: skip
LISTED = {
    "lraspp_mobilenet_v3_large, a segmenter": torchvision_networks,
    "ssdlite320_mobilenet_v3_large, a detector": torchvision_networks,
    "segformer, a segmenter": transformers_networks,
    "detr, a detector": transformers_networks,
    "yolos, a detector": transformers_networks,
}
"""Networks of the zoo's lists, with what they are: those with several outputs, or inputs by name."""


@dataclass(frozen=True)
class Task:
    """One network in one format."""

    model: str
    format: str
    folder: Path

    @property
    def row(self) -> Path:
        """Where its row goes."""
        return self.folder / f"{self.model}{self.format}.json"


def make_network(name: str) -> tuple[nn.Module, Any]:
    """A network with random weights, and its example inputs."""
    torch.manual_seed(0)
    if name in LISTED:
        model, inputs = LISTED[name].make_network(name.partition(",")[0])
    else:
        model, inputs = timm.create_model(name, num_classes=10), torch.randn(1, 3, SIDES[name], SIDES[name])
    return settle_(randomize_(model, 0).eval(), inputs), inputs


def make_three(dense: nn.Module, inputs: Any) -> dict[str, nn.Module]:
    """A network, the same with half of its removable channels masked, and shrunk."""
    masked = copy.deepcopy(dense)
    masks, _ = mask_channels(masked, svd.channel_graph(masked, inputs), "half", 0)
    apply_masks_(masked, masks)
    return {"dense": dense, "masked": masked, "shrunk": svd.shrink(masked, inputs)[0]}


def make(task: Task) -> None:
    """Export the three, and write what came of them."""
    torch.set_num_threads(1)
    dense, inputs = make_network(task.model)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for which, network in make_three(dense, inputs).items():
            path = Path(folder) / f"net{task.format}"
            try:
                found[which] = export(network, path, inputs).to_dict()
            except SparseVDError as error:
                found[which] = {"failed": summarize_error(error)}
    write_json(task.row, {"model": task.model, "format": task.format, **found})


def main(out: Path, models: list[str] | None = None, jobs: int = 1, rows: Path = Path("runs/exports")) -> None:
    """Export what has no row yet, then write all rows.

    Args:
        out: where the results go, as JSON
        models: only these
        jobs: at once
        rows: folder for the rows
    """
    before = read_json(out)["results"] if out.exists() else []
    known = {(row["model"], row["format"]): row for row in before}
    tasks = [
        Task(model, suffix, rows)
        for model in models or [*SIDES, *LISTED]
        for suffix, one in FORMATS.items()
        if not one.missing
    ]
    missing = [task for task in tasks if (task.model, task.format) not in known and not task.row.exists()]
    for task, ended in run_isolated(make, missing, jobs, Limits(seconds=900), "timm"):
        print(f"{task.model}{task.format}: {ended or 'done'}", flush=True)
        if ended:
            write_json(task.row, {"model": task.model, "format": task.format, "failed": ended})
    known |= {(task.model, task.format): read_json(task.row) for task in tasks if task.row.exists()}
    write_json(
        out,
        {
            "environment": describe_environment(["examples/benchmarks/exports.py", str(out)], 0),
            "results": list(known.values()),
        },
    )


if __name__ == "__main__":
    auto_cli(main)
