"""Where and how a result was made, so that it can be made again."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

PACKAGES = ("nni_sparsevd", "torch", "timm", "torch-pruning", "nni", "accelerate", "numpy")
"""Packages that are always listed, even if they are not installed."""
RUNTIMES = ("onnxruntime", "executorch", "ai-edge-litert")
"""Listed only if they are installed: only results of `export` depend on them."""


def describe_environment(command: list[str], seed: int) -> dict[str, object]:
    """Describe what a result depends on besides its settings.

    Args:
        command: The command line of the program.
        seed: The seed of the run.

    Returns:
        A JSON object: command, seed, versions, machine, processor, threads, GPU, commit of this package.
    """
    versions = {package: _find_version(package) or "not installed" for package in PACKAGES}
    for runtime in RUNTIMES:
        version = _find_version(runtime)
        if version is not None:
            versions[runtime] = version
    return {
        "command": command,
        "seed": seed,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _find_processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
        "commit": find_commit(),
    }


def _find_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _find_processor() -> str:
    """The name of the processor; Python itself knows only its family on Linux."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def find_commit() -> str | None:
    """The commit of this package's own checkout; None where it is installed otherwise, or git is missing."""
    here = Path(__file__).parent
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
