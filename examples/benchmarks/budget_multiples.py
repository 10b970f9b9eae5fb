"""What the multiple of channel counts does to the latency of networks of equal multiply-accumulates.

Run: `python examples/benchmarks/budget_multiples.py OUT.json`

`tf_efficientnet_lite0` on photos of 96 pixels, with gates whose posteriors are random, so that only the sizes count.
Channels leave as on the way to a budget. ONNX Runtime and PyTorch, one thread, processor time, in turns with the dense
network. The width of the processor's vectors matters, so the results hold for processors like the one they name.
"""

import copy
import platform
import sys
from pathlib import Path

import timm
import torch
from jsonargparse import auto_cli
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.export import LatencyMeter
from nni_sparsevd.files import write_json
from nni_sparsevd.measure import count_macs
from nni_sparsevd.nn import find_gates, make_plain_copy
from nni_sparsevd.regularize import choose_cutoffs, use_cutoffs_
from nni_sparsevd.shrinking import shrink_
from nni_sparsevd.training.environment import describe_environment

IMAGE = torch.zeros(1, 3, 96, 96)


def cut_to(dense: nn.Module, part: float, multiple: int) -> nn.Module:
    """An ordinary copy of the network with this part of its multiply-accumulates, in multiples of channels."""
    model = svd.sparsify_(copy.deepcopy(dense), granularity="gate", example_inputs=IMAGE)
    generator = torch.Generator().manual_seed(0)
    for gate in find_gates(model):
        gate.log_sigma2.data.uniform_(-6, -2, generator=generator)
    while True:  # what two gates of one layer cost together is counted twice: one cut is not enough
        saving = count_macs(make_plain_copy(model), IMAGE) - part * count_macs(dense, IMAGE)
        cutoffs = choose_cutoffs(model, IMAGE, "macs", saving, multiple)
        if not cutoffs:
            return make_plain_copy(model).eval()
        before = use_cutoffs_(model, cutoffs)
        shrink_(model, IMAGE)
        use_cutoffs_(model, before)


def main(
    out: Path,
    parts: tuple[float, ...] = (0.5, 0.25, 0.125),
    multiples: tuple[int, ...] = (1, 8, 16),
    runtimes: tuple[str, ...] = ("onnxruntime", "pytorch"),
) -> None:
    """Measure every part at every multiple.

    Args:
        out: where the results go, as JSON.
        parts: parts of the dense network's multiply-accumulates that are left.
        multiples: what channel counts are multiples of.
        runtimes: where latency is measured.
    """
    torch.manual_seed(0)
    dense = timm.create_model("tf_efficientnet_lite0", num_classes=10).eval()
    meters = {runtime: LatencyMeter(runtime, dense, IMAGE) for runtime in runtimes}
    has_avx512 = "avx512f" in Path("/proc/cpuinfo").read_text() if platform.system() == "Linux" else None
    rows = []
    for part in parts:
        for multiple in multiples:
            network = cut_to(dense, part, multiple)
            row = {"part": part, "multiple": multiple, "macs": count_macs(network, IMAGE) / count_macs(dense, IMAGE)}
            row["latency"] = {runtime: meter.measure_part(network) for runtime, meter in meters.items()}
            rows.append(row)
            content = {"environment": describe_environment(sys.argv, 0), "avx512": has_avx512, "rows": rows}
            write_json(out, content)
            print(rows[-1], flush=True)


if __name__ == "__main__":
    auto_cli(main)
