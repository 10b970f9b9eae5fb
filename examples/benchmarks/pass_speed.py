"""How long planning and shrinking take, beside Torch-Pruning and NNI.

Run: `python examples/benchmarks/pass_speed.py OUT.json`

Half of the channels go.  Ours: the channel graph, the plan, the cut (and, in a column of its own, the comparison that
neither of the others makes).  Torch-Pruning: its pruner made and `step` called, its README's way with `num_heads`.
NNI: L1NormPruner's masks are made before, ModelSpeedup alone is timed.  One thread, in turns, median processor time,
as wall time says little on a machine that others use, too.  Networks that OUT.json holds already are not timed again.
"""

import copy
import gc
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch_pruning as tp
from nni.compression.pruning import L1NormPruner
from nni.compression.speedup import ModelSpeedup
from torch import nn

from nni_sparsevd.files import read_json, write_json
from nni_sparsevd.graph import channel_graph
from nni_sparsevd.masks import apply_masks_
from nni_sparsevd.plugins.nni import enable, trace
from nni_sparsevd.shrinking import apply_plan, check, plan_removal
from nni_sparsevd.studies.zoo.trials import mask_channels
from nni_sparsevd.testing import randomize_
from nni_sparsevd.training.environment import describe_environment, find_commit

ROUNDS = 3
MASKED = {"conv": {"op_types": ["Conv2d"]}, "mlp": {"op_names_re": [r".*\.mlp\.fc1"]}}
# The side of the image, and what NNI masks; None where it takes gibibytes (13 for Swin) or minutes.
NETWORKS: dict[str, tuple[int, str | None]] = {
    "resnet50": (64, "conv"),
    "efficientnet_b0": (64, "conv"),
    "convnext_tiny": (64, "mlp"),
    "vit_small_patch16_224": (224, "mlp"),
    "swin_tiny_patch4_window7_224": (224, None),
    "densenet121": (64, "conv"),
    "vit_large_patch16_224": (224, None),
}


def ours(model: nn.Module, x: torch.Tensor) -> Callable[[], nn.Module]:
    masks, _ = mask_channels(model, channel_graph(model, x), "half", 0)
    masked = copy.deepcopy(model)
    apply_masks_(masked, masks)

    def run() -> nn.Module:
        return apply_plan(masked, plan_removal(masked, channel_graph(masked, x)))

    return run


def compared(model: nn.Module, x: torch.Tensor) -> Callable[[], nn.Module]:
    small = ours(model, x)()
    masked = copy.deepcopy(model)
    apply_masks_(masked, mask_channels(model, channel_graph(model, x), "half", 0)[0])

    def run() -> nn.Module:
        assert check(masked, small, x, rounds=1).ok
        return small

    return run


def torch_pruning(model: nn.Module, x: torch.Tensor) -> Callable[[], nn.Module]:
    def run() -> nn.Module:
        pruned = copy.deepcopy(model)
        heads = {m.qkv: m.num_heads for m in pruned.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")}
        importance = tp.importance.GroupMagnitudeImportance(p=2)
        ignored = [pruned.get_classifier()]
        pruner = tp.pruner.BasePruner(
            pruned, x[:1], importance, pruning_ratio=0.5, ignored_layers=ignored, num_heads=heads, prune_num_heads=False
        )
        pruner.step()
        return pruned

    return run


def nni(model: nn.Module, x: torch.Tensor, what: str) -> Callable[[], nn.Module]:
    enable()  # ModelSpeedup needs the repairs on today's PyTorch
    original = copy.deepcopy(model)
    pruner = L1NormPruner(original, [{**MASKED[what], "sparse_ratio": 0.5}])
    _, masks = pruner.compress()
    pruner.unwrap_model()

    def run() -> nn.Module:
        pruned = copy.deepcopy(original)
        ModelSpeedup(pruned, x, masks, graph_module=trace(pruned, x)).speedup_model()
        return pruned

    return run


def measure(name: str, size: int, what: str | None) -> dict[str, Any]:
    torch.manual_seed(0)
    model = randomize_(timm.create_model(name)).eval()
    x = torch.randn(2, 3, size, size)
    runs: dict[str, Callable[[], nn.Module]] = {}
    row: dict[str, Any] = {"network": name, "input": size, "commit": find_commit(), "ways": {}}
    ways: dict[str, Callable[..., Callable[[], nn.Module]]] = {
        "ours": ours,
        "ours, comparison": compared,
        "Torch-Pruning": torch_pruning,
    }
    if what is not None:
        ways["NNI ModelSpeedup"] = partial(nni, what=what)
    for way, make in ways.items():
        try:
            runs[way] = make(model, x)
            small = runs[way]()
            row["ways"][way] = {"parameters": sum(p.numel() for p in small.parameters()), "runs": True, "error": ""}
        except Exception as error:  # a rival that fails is a result
            runs.pop(way, None)
            row["ways"][way] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            continue
        try:
            small(x)
        except Exception as error:
            row["ways"][way] |= {"runs": False, "error": f"forward: {str(error).splitlines()[0]}"}
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(ROUNDS):
        for way, run in runs.items():
            gc.collect()  # what one leaves behind is not for the next to clear away
            began = time.process_time()
            run()
            seconds[way].append(time.process_time() - began)
    for way, values in seconds.items():
        row["ways"][way]["seconds"] = statistics.median(values)
    return row


def main(path: Path) -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    results = read_json(path)["results"] if path.exists() else []
    known = {row["network"] for row in results}
    for name, (size, what) in NETWORKS.items():
        if name in known:
            continue
        results.append(measure(name, size, what))
        print(results[-1], flush=True)
        write_json(path, {"environment": describe_environment(sys.argv, 0), "results": results})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
