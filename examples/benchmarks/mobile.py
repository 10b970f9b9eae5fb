"""What a phone saves.  RUN is a finished run of `compress`.

Run: `python examples/benchmarks/mobile.py RUN OUT.json`

The masked network, which is as large as the dense one, and the small network as .pte files in ExecuTorch's runtime,
XNNPACK on one thread: bytes, milliseconds for one image, and memory that a process takes to open and run the file.
Needs the extra `mobile`.
"""

import multiprocessing
import statistics
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch
from executorch.extension.pybindings._C import _unsafe_reset_threadpool  # the only way to choose the threads
from jsonargparse import auto_cli
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.export import export
from nni_sparsevd.files import read_json, write_json
from nni_sparsevd.measure import count_macs, count_parameters, measure_latencies
from nni_sparsevd.training.environment import describe_environment

PROCESSES = 5
"""Memory is the median over so many."""
THREADS = 1
SIDES = {"dense": "masked", "shrunk": "small"}
"""What a run folder calls the two."""


def taken(path: Path, tiny: Path, shape: list[int]) -> int:
    """Bytes by which a fresh process grows while it opens and runs a file; the runtime itself is there before."""
    _unsafe_reset_threadpool(THREADS)
    image = torch.randn(1, *shape)
    svd.load(tiny)(image)
    before = psutil.Process().memory_info().rss
    network = svd.load(path)
    network(image)
    return int(psutil.Process().memory_info().rss - before)


def main(run: Path, out: Path) -> None:
    """Export, run and measure.

    Args:
        run: folder of a finished run
        out: where the results go, as JSON
    """
    torch.set_num_threads(THREADS)
    _unsafe_reset_threadpool(THREADS)
    result = read_json(run / "result.json")
    shape = result["input"]
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        tiny = Path(folder) / "tiny.pte"
        export(nn.Conv2d(shape[0], 1, 1), tiny, image)
        files = {side: Path(folder) / f"{side}.pte" for side in SIDES}
        for side, stem in SIDES.items():
            network = svd.load(run / f"{stem}.safetensors")
            compared = export(network, files[side], image)
            rows[side] = {
                "error_percent": result["test"][side]["error_percent"],
                "parameters": count_parameters(network),
                "macs": count_macs(network, image),
                "bytes": compared.bytes,
                "max_rel": compared.max_rel,
            }
        times = measure_latencies({side: svd.load(path) for side, path in files.items()}, image, rounds=100)
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            for side, path in files.items():
                grown = [pool.apply(taken, (path, tiny, shape)) for _ in range(PROCESSES)]
                rows[side] |= {"milliseconds": times[side], "memory_bytes": statistics.median(grown)}
    name = svd.describe_file(run / "small.safetensors")["name"]
    command = ["examples/benchmarks/mobile.py", str(run), str(out)]
    write_json(out, {"environment": describe_environment(command, 0), "model": name, "input": shape, "results": rows})


if __name__ == "__main__":
    auto_cli(main, as_positional=True)
