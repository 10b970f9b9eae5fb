"""Imports run one way.  Every file's imports are read, those inside functions too."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nni_sparsevd"
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"
HOSTS = ("nni", "torch_pruning", "pytorch_lightning", "transformers")
BINDS_HOSTS = ("plugins", "studies")


def written_order() -> dict[str, set[str]]:
    """The table of docs/architecture.md: each room, in order, with the rooms that it imports."""
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\|([^|]*)\|$", ARCHITECTURE.read_text(), re.MULTILINE)
    return {room: {name.strip() for name in imports.split(",") if name.strip()} for room, imports in rows}


ORDER = written_order()


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


def imports_of(package: Path) -> Iterator[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """(file, path of its module, path of a module that it imports), for every import."""
    files = sorted(package.rglob("*.py"))
    paths = {file: (package.name, *file.relative_to(package).with_suffix("").parts) for file in files}
    known = set(paths.values()) | {path[:-1] for path in paths.values() if path[-1] == "__init__"}
    for file, module in paths.items():
        for target in targets(ast.parse(file.read_text()), module, known):
            yield str(file.relative_to(package)), module, target


def violations(package: Path) -> list[str]:
    """One line an import that is not in the table, goes through a front door of its own, or binds a host."""
    found = []
    for file, module, target in imports_of(package):
        problem = problem_of(package.name, module, target)
        if problem:
            found.append(f"{file}: {'.'.join(target)}: {problem}")
    return found


def problem_of(package: str, module: tuple[str, ...], target: tuple[str, ...]) -> str | None:
    room = module[1]
    if target[0] in HOSTS:
        return None if room in BINDS_HOSTS else f"only {' and '.join(BINDS_HOSTS)} may bind a host"
    if target[0] != package or room in ("__init__", "__main__"):
        return None
    if room not in ORDER:
        return f"{room} has no place in the order; give it one"
    if target == (package,):
        return "the package's own front door"
    if target[1] == room:
        return "the room's own __init__" if target == (package, room) and module[-1] != "__init__" else None
    return None if target[1] in ORDER[room] else f"{room} may not import {target[1]}"


def test_the_written_order_runs_one_way():
    above: set[str] = set()
    for room, imports in ORDER.items():
        assert imports <= above, f"{room} imports what does not stand above it: {imports - above}"
        above.add(room)


def test_what_is_imported_equals_what_is_written():
    assert violations(PACKAGE) == []
    found: dict[str, set[str]] = {room: set() for room in ORDER}
    for _, module, target in imports_of(PACKAGE):
        if module[1] in ORDER and target[0] == PACKAGE.name and len(target) > 1 and target[1] != module[1]:
            found[module[1]].add(target[1])
    assert found == ORDER


def test_every_room_has_its_place():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert rooms - {"__init__", "__main__"} == set(ORDER)


def test_no_function_has_the_name_of_its_module():
    same = []
    for file in PACKAGE.rglob("*.py"):
        name = file.parent.name if file.stem == "__init__" else file.stem
        same += [
            str(file)
            for node in ast.parse(file.read_text()).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name
        ]
    assert same == []


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
        ("shrinking/plan.py", "from ..training import fit", "shrinking may not import training"),
        ("data.py", "from .masks import Masks", "data may not import masks"),
        ("files.py", "import torch_pruning as tp", "only plugins and studies"),
        ("files.py", "from nni.compression import Pruner", "only plugins and studies"),
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


FRESH = """
import importlib, json, pkgutil, sys
findings = {}
import nni_sparsevd as svd
findings["front door"] = [*sys.modules]
import nni_sparsevd.testing
findings["testing"] = [*sys.modules]
import nni_sparsevd.regularize
findings["regularize"] = [*sys.modules]
import torch
svd.save(torch.nn.Linear(2, 2), "x.safetensors")
svd.load("x.safetensors", torch.nn.Linear(2, 2))
findings["load"] = [*sys.modules]

import matplotlib
matplotlib.use("svg")
svd.load("x.safetensors", torch.nn.Linear(2, 2))
findings["backend after load"] = matplotlib.get_backend()
for room in pkgutil.iter_modules(svd.__path__):
    if room.name != "__main__":
        importlib.import_module(f"nni_sparsevd.{room.name}")
import nni_sparsevd.studies.bench, nni_sparsevd.studies.reproduce, nni_sparsevd.studies.zoo
findings["backend after rooms"] = matplotlib.get_backend()
import nni_sparsevd.plugins.torch_pruning, nni_sparsevd.plugins.nni
findings["backend after plugins"] = matplotlib.get_backend()
print(json.dumps(findings))
"""
"""Each step loads more: what is not loaded after a step is not loaded by it alone either."""


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    """What one fresh interpreter says; each takes seconds to import PyTorch."""
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    folder = tmp_path_factory.mktemp("fresh")
    ended = subprocess.run(
        [sys.executable, "-c", FRESH], capture_output=True, text=True, cwd=folder, env=environment, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def packages(modules: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def test_the_front_door_loads_nothing_optional(findings):
    optional = {
        *HOSTS, "timm", "torchvision", "matplotlib", "accelerate", "sklearn", "tensorboard", "jsonargparse", "rich",
        "jinja2", "onnx",
    }  # fmt: skip
    assert packages(findings["front door"]) & optional == set()
    assert {"torch", "nni_sparsevd"} <= packages(findings["front door"])


def test_the_room_of_testing_imports_no_pytest(findings):
    assert "nni_sparsevd.testing" in findings["testing"]
    assert "pytest" not in findings["testing"]


def test_the_room_that_drives_the_kl_needs_no_host(findings):
    assert "nni_sparsevd.regularize" in findings["regularize"]
    assert packages(findings["regularize"]) & {*HOSTS, "matplotlib"} == set()


def test_loading_a_saved_network_draws_and_exports_nothing(findings):
    assert not set(findings["load"]) & {"matplotlib", "nni_sparsevd.report", "onnx", "onnxruntime"}


@pytest.mark.parametrize("use", ["load", "rooms", "plugins"])
def test_nobody_touches_the_users_matplotlib_backend(findings, use):
    assert findings[f"backend after {use}"] == "svg"
