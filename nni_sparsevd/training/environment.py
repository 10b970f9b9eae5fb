"""Where and how a result was made, so that it can be made again."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

PACKAGES = ("nni_sparsevd", "torch", "timm", "torch-pruning", "nni", "accelerate", "numpy")
RUNTIMES = ("onnxruntime", "executorch", "ai-edge-litert")
"""Named where they are installed; nothing here needs them."""


def describe_environment(command: list[str], seed: int) -> dict[str, object]:
    """Versions, machine, command and seed: JSON-able."""
    versions = {package: _version(package) or "not installed" for package in PACKAGES}
    versions |= {runtime: found for runtime in RUNTIMES if (found := _version(runtime))}
    return {
        "command": command,
        "seed": seed,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str | None:
    """Of this package's own checkout, if it is one."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
