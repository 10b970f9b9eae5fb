"""What a step of training on a CPU gains when the process keeps the memory that the step before has freed.

Run: `python examples/benchmarks/kept_memory.py OUT.json`

Every measurement is a process of its own, as the C library can be told once only; with and without come in turns, alone
and two side by side.  A step is forward, loss, backward and AdamW on one thread; a round counts its median wall time,
and the table has medians of the rounds.
"""

import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F

import nni_sparsevd.models  # noqa: F401  registers the networks of the papers
from nni_sparsevd.files import read_json, write_json
from nni_sparsevd.training import describe_environment, keep_freed_memory

ROUNDS = 2
STEPS = 6
"""Steps that are timed, after two that are not."""


@dataclass(frozen=True)
class Case:
    """What one step trains."""

    network: str
    channels: int
    size: int
    batch: int


CASES = [
    Case("tf_efficientnet_lite0", 3, 128, 32),
    Case("deit_tiny_patch16_224", 3, 224, 16),
    Case("resnet20", 3, 32, 128),
    Case("lenet5_caffe", 1, 28, 100),
]


def time_step(case: Case, *, keep: bool) -> None:
    """In a process of its own: print the seconds of a step and the peak of memory in MiB."""
    if keep and not keep_freed_memory():
        raise SystemExit("the C library does not take it; nothing to compare")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"img_size": case.size} if "vit" in case.network or "deit" in case.network else {}
    model = timm.create_model(case.network, num_classes=10, **sizes).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    images = torch.randn(case.batch, case.channels, case.size, case.size).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (case.batch,))

    def step() -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        return time.perf_counter() - began

    seconds = [step() for _ in range(STEPS + 2)][2:]
    print(statistics.median(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(case: Case, processes: int) -> dict[str, Any]:
    """One row: seconds and MiB, with memory given back and kept, of `processes` side by side."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    memory: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS):
        for keep in (False, True):
            command = [sys.executable, __file__, "--step", str(CASES.index(case)), str(int(keep))]
            running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
            for process in running:
                output, _ = process.communicate()
                if process.returncode:
                    raise SystemExit(f"{case.network}: the process of a measurement failed")
                taken, held = output.split()
                seconds[keep].append(float(taken))
                memory[keep].append(float(held))
    return {
        "network": case.network,
        "size": case.size,
        "batch": case.batch,
        "processes": processes,
        "seconds": [statistics.median(seconds[keep]) for keep in (False, True)],
        "mebibytes": [statistics.median(memory[keep]) for keep in (False, True)],
    }


def main(path: Path) -> None:
    results = read_json(path)["results"] if path.exists() else []
    known = {(row["network"], row["processes"]) for row in results}
    for case in CASES:
        for processes in (1, 2):
            if (case.network, processes) in known:
                continue
            results.append(measure(case, processes))
            print(results[-1], flush=True)
            write_json(path, {"environment": describe_environment(sys.argv, 0), "results": results})


if __name__ == "__main__":
    if sys.argv[1] == "--step":
        time_step(CASES[int(sys.argv[2])], keep=bool(int(sys.argv[3])))
    else:
        main(Path(sys.argv[1]))
