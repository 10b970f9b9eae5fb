"""What posteriors, a step, masks and shrinking cost as networks grow.

Run: `python examples/benchmarks/large_models.py OUT.json`

timm networks from 5 to 350 million parameters, random weights, one image of their own size, one thread; processor
seconds of each stage, and the most memory that the process took.  Every weight has a posterior, each coupled channel
group a gate, sigma^2 is one of each output channel; half of the gates are closed before the masks are made.  Each
network has a process of its own, its dense training step another.
"""

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from jsonargparse import auto_cli
from torch import Tensor, nn

import nni_sparsevd as svd
from nni_sparsevd.files import write_json
from nni_sparsevd.measure import count_parameters
from nni_sparsevd.nn import gate_sites
from nni_sparsevd.report.pictures import styled_axes
from nni_sparsevd.training.environment import describe_environment

FAMILIES = {
    "ViT": ("vit_tiny_patch16_224", "vit_small_patch16_224", "vit_base_patch16_224", "vit_large_patch16_224"),
    "ConvNeXt": ("convnext_tiny", "convnext_small", "convnext_base", "convnext_large", "convnext_xlarge"),
    "ResNet": ("resnet18", "resnet50", "resnet152", "wide_resnet101_2"),
}
STAGES = ("attach", "step", "masks", "shrink")


class Watch:
    """Processor seconds since it was last asked."""

    def __init__(self) -> None:
        self._last = time.process_time()

    def lap(self) -> float:
        """Seconds."""
        before, self._last = self._last, time.process_time()
        return self._last - before


def gibibytes() -> float:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def network(name: str) -> tuple[nn.Module, Tensor]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = timm.create_model(name)
    return model, torch.randn(1, *timm.data.resolve_model_data_config(model)["input_size"])


def step_(model: nn.Module, x: Tensor, variational: bool) -> float:
    """Two training steps; the seconds of the second."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    model.train()
    for module in model.modules():  # one image has no statistics of its own
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    seconds = 0.0
    for _ in range(2):
        watch = Watch()
        optimizer.zero_grad()
        loss = model(x).square().mean()
        if variational:
            loss = loss + svd.kl(model) / 1_000_000
        loss.backward()
        optimizer.step()
        seconds = watch.lap()
    return seconds


def dense(name: str) -> dict[str, float]:
    """A training step without posteriors."""
    model, x = network(name)
    return {"dense_step": step_(model, x, False), "dense_gibibytes": gibibytes()}


def ours(name: str) -> dict[str, Any]:
    """All stages in a row."""
    model, x = network(name)
    size, watch = count_parameters(model), Watch()
    svd.sparsify_(model, example_inputs=x, granularity="both", variance="channel")
    found: dict[str, Any] = {"network": name, "parameters": size, "attach": watch.lap()}
    found["step"] = step_(model, x, True)
    found["gibibytes"] = gibibytes()
    with torch.no_grad():
        for _, _, gate in gate_sites(model):
            gate.mu[::2] = 0
    model.eval()
    watch.lap()
    masks = svd.compute_masks(model, structure="structured", example_inputs=x)
    found["masks"] = watch.lap()
    svd.bake_(model, masks)
    watch.lap()
    small, plan = svd.shrink(model, x)
    found["shrink"] = watch.lap()
    with torch.no_grad():
        before, after = model(x), small(x)
    found |= {
        "removed": plan.removed,
        "parameters_left": count_parameters(small),
        "difference": float((after - before).abs().max() / before.abs().max()),
        "gibibytes_in_all": gibibytes(),
    }
    return found


def growth(rows: list[dict[str, Any]], stage: str) -> float:
    """Exponent of the cost in the number of parameters: 1 is linear."""
    sizes = np.log([row["parameters"] for row in rows])
    return float(np.polyfit(sizes, np.log([row[stage] for row in rows]), 1)[0])


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds over millions of parameters, a line for each stage and family."""
    colours, marks = dict(zip(STAGES, ("#8d99ae", "#d1603d", "#2f6690", "#000000"), strict=True)), "osv"
    with styled_axes(path, 7.5, 4.5) as axes:
        for mark, family in zip(marks, FAMILIES, strict=True):
            own = [row for row in rows if row["family"] == family]
            sizes = [row["parameters"] / 1e6 for row in own]
            for stage in STAGES:
                label = f"{stage}, {family}"
                axes.plot(
                    sizes,
                    [row[stage] for row in own],
                    marker=mark,
                    markersize=4,
                    color=colours[stage],
                    linewidth=1,
                    label=label,
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("millions of parameters")
        axes.set_ylabel("processor seconds")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def main(out: Path, picture: Path | None = None, largest: int = 400) -> None:
    """Measure every network, smallest first in each family.

    Args:
        out: where the results go, as JSON.
        picture: where the picture goes.
        largest: leave out networks of more than this many million parameters.
    """
    rows: list[dict[str, Any]] = []
    alone = multiprocessing.get_context("spawn")
    for family, names in FAMILIES.items():
        for name in names:
            with torch.device("meta"):
                if count_parameters(timm.create_model(name)) > 1e6 * largest:
                    continue
            with ProcessPoolExecutor(1, alone, max_tasks_per_child=1) as pool:
                rows.append({"family": family, **pool.submit(ours, name).result(), **pool.submit(dense, name).result()})
            print(rows[-1], flush=True)
            own = {of: [row for row in rows if row["family"] == of] for of in FAMILIES}
            exponents = {of: {s: growth(r, s) for s in STAGES} for of, r in own.items() if len(r) > 2}
            write_json(out, {"environment": describe_environment(sys.argv, 0), "results": rows, "exponents": exponents})
    if picture is not None:
        draw(rows, picture)


if __name__ == "__main__":
    auto_cli(main)
