"""Imports run one way.  Every file's imports are read, those inside functions too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nni_sparsevd"
FOUNDATION = ("errors", "files", "recipe", "processes", "packing")
METHOD = (*FOUNDATION, "dawson", "posterior", "divergence", "nn", "graph", "masks", "convert", "predictive")
ALLOWED: dict[str, tuple[str, ...]] = {room: METHOD[:place] for place, room in enumerate(METHOD)}
ALLOWED |= {
    "data": FOUNDATION,
    "models": FOUNDATION,
    "shrink": METHOD,
    "training": (*METHOD, "data", "models", "shrink"),
    "storage": (*METHOD, "models", "shrink"),
    "report": (*METHOD, "models", "shrink", "storage"),
    "export": (*METHOD, "shrink", "report"),
    "hub": (*METHOD, "storage"),
    "structure": (*METHOD, "models", "shrink"),
    "loading": (*METHOD, "storage", "hub", "export"),
    "results": (*METHOD, "data", "models", "training", "shrink", "storage", "report", "export"),
}
ALLOWED["zoo"] = ALLOWED["results"]
ALLOWED["reproduce"] = ALLOWED["results"]
ALLOWED["plugins"] = tuple(ALLOWED)
ALLOWED["bench"] = tuple(ALLOWED)
ALLOWED["cli"] = tuple(ALLOWED)
ALLOWED["__main__"] = ("cli",)
HOSTS = ("nni", "torch_pruning")
BINDS_HOSTS = ("plugins", "bench")


def targets(tree: ast.AST, module: tuple[str, ...], known: set[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """Every module that is imported, by its path; `module` is the importing one, `known` all of the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module[: -node.level] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                yield (*base, alias.name) if (*base, alias.name) in known else base


def violations(package: Path) -> list[str]:
    """One line an import that runs upwards, goes through a front door of its own, or binds a host."""
    files = sorted(package.rglob("*.py"))
    paths = {file: (package.name, *file.relative_to(package).with_suffix("").parts) for file in files}
    known = set(paths.values()) | {path[:-1] for path in paths.values() if path[-1] == "__init__"}
    found = []
    for file, module in paths.items():
        for target in targets(ast.parse(file.read_text()), module, known):
            problem = problem_of(package.name, module, target)
            if problem:
                found.append(f"{file.relative_to(package)}: {'.'.join(target)}: {problem}")
    return found


def problem_of(package: str, module: tuple[str, ...], target: tuple[str, ...]) -> str | None:
    room = module[1]
    if target[0] in HOSTS:
        return None if room in BINDS_HOSTS else "only plugins and bench may bind a host"
    if target[0] != package or room == "__init__":
        return None
    if room not in ALLOWED:
        return f"{room} has no place in the order; give it one"
    if target == (package,):
        return "the package's own front door"
    if target[1] == room:
        return "the room's own __init__" if target == (package, room) and module[-1] != "__init__" else None
    return None if target[1] in ALLOWED[room] else f"{room} may not import {target[1]}"


def test_imports_run_one_way():
    assert violations(PACKAGE) == []


def test_every_room_has_its_place():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__"} <= set(ALLOWED)


@pytest.mark.parametrize(
    ("file", "line", "problem"),
    [
        ("nn/gate.py", "from ..masks import Masks", "nn may not import masks"),
        ("nn/gate.py", "from .. import masks", "nn may not import masks"),
        ("nn/gate.py", "import nni_sparsevd.masks", "nn may not import masks"),
        ("nn/gate.py", "from nni_sparsevd import masks", "nn may not import masks"),
        ("nn/gate.py", "def late():\n    from ..cli import main", "nn may not import cli"),
        ("nn/gate.py", "from .. import kl", "front door"),
        ("nn/gate.py", "from . import kl", "own __init__"),
        ("nn/gate.py", "from nni_sparsevd.nn import kl", "own __init__"),
        ("shrink/plan.py", "from ..training import fit", "shrink may not import training"),
        ("data.py", "from .masks import Masks", "data may not import masks"),
        ("posterior.py", "import torch_pruning as tp", "only plugins and bench"),
        ("posterior.py", "from nni.compression import Pruner", "only plugins and bench"),
        ("extra.py", "from .errors import ModelError", "no place"),
    ],
)
def test_a_planted_upward_import_is_caught(tmp_path, file, line, problem):
    package = plant(tmp_path, file, line)
    (found,) = violations(package)
    assert found.startswith(file)
    assert problem in found


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("nn/gate.py", "from . import layers\nfrom .layers import Linear\nfrom .. import errors\nimport torch.nn"),
        ("nn/__init__.py", "from .gate import ChannelGate\nfrom ..errors import ModelError"),
        ("__init__.py", "from .nn import kl\nfrom .cli import main"),
        ("plugins/host.py", "import nni\nimport torch_pruning\nfrom ..masks import Masks"),
    ],
)
def test_a_downward_import_passes(tmp_path, file, line):
    assert violations(plant(tmp_path, file, line)) == []


def plant(folder: Path, file: str, line: str) -> Path:
    package = folder / "nni_sparsevd"
    for empty in ("__init__", "errors", "masks", "cli", "nn/__init__", "nn/gate", "nn/layers", "training/__init__"):
        (package / empty).parent.mkdir(parents=True, exist_ok=True)
        (package / empty).with_suffix(".py").touch()
    (package / file).parent.mkdir(exist_ok=True)
    (package / file).write_text(line + "\n")
    return package


def test_the_front_door_loads_nothing_optional():
    optional = {
        *HOSTS, "timm", "torchvision", "matplotlib", "accelerate", "sklearn", "tensorboard", "jsonargparse", "rich",
        "jinja2", "onnx",
    }  # fmt: skip
    code = "import sys, nni_sparsevd; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent
    )
    assert set(loaded.stdout.split()) & optional == set()
    assert {"torch", "nni_sparsevd"} <= set(loaded.stdout.split())
