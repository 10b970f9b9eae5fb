"""`export`: write a network for another runtime, run the file there, compare, and only then give it its name."""

import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import ModelError, SettingError, describe_error
from ..graph import Inputs, as_tuple, evaluation_mode
from ..nn import is_variational
from ..shrinking import draw_inputs

TOLERANCE = 1e-4
"""Largest difference, relative to the largest output."""
BATCHES = (1, 2, 3)
Arrays = tuple[Tensor, ...]
Run = Callable[[Arrays], Tensor]
"""A file that runs: inputs -> output."""


@dataclass(frozen=True)
class Format:
    """One runtime."""

    title: str
    module: str
    """Of this room: has `write(model, inputs, path, dynamic_batch)` and `opened(path)`, which gives a `Run`."""
    needs: tuple[str, ...]
    """Packages that must be there."""
    install: str
    """Command that brings them."""
    dynamic: bool
    """Whether one file serves all batch sizes."""
    runs_code: bool = False
    """Whether opening a file can run code that it holds."""

    @property
    def missing(self) -> list[str]:
        """Packages that are not there."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


FORMATS = {
    ".onnx": Format("ONNX", "onnx", ("onnx", "onnxscript", "onnxruntime"), "pip install 'nni_sparsevd[export]'", True),
    ".pt2": Format("torch.export", "torch_export", (), "", True, runs_code=True),
    ".pte": Format("ExecuTorch", "executorch", ("executorch",), "pip install 'nni_sparsevd[mobile]'", False),
    ".tflite": Format(
        "LiteRT", "litert", ("litert_torch", "ai_edge_litert"), "pip install litert-torch ai-edge-litert", False
    ),
}
"""By the file's suffix.  A new runtime is one file and one row."""


@dataclass(frozen=True)
class Comparison:
    """Largest difference between the network and the file, over random inputs."""

    format: str
    max_abs: float
    max_rel: float
    """Relative to the largest output."""
    batches: tuple[int, ...]
    bytes: int

    @property
    def ok(self) -> bool:
        """Equal to what float32 allows two runtimes."""
        return self.max_rel <= TOLERANCE

    def to_dict(self) -> dict[str, object]:
        """JSON-able, with the verdict."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        sizes = ", ".join(str(size) for size in self.batches)
        found = f"largest difference {self.max_abs:.2g} (relative {self.max_rel:.2g}), batches of {sizes}"
        return f"{self.format}: {self.bytes:,} bytes; {found}"


def export(model: nn.Module, path: Path | str, example_inputs: Inputs, *, dynamic_batch: bool = True) -> Comparison:
    """Write `model` in the format of the suffix of `path`: .onnx, .pt2, .pte or .tflite.

    With `dynamic_batch` the file takes any batch size, where the format can (.onnx, .pt2); otherwise that of
    `example_inputs`.  The file is run and compared with the network, in evaluation mode on random inputs; `path`
    appears when they agree, whole or not at all.  The model is left as it was.

    Raises `SettingError` for an unknown suffix or a missing package, with the command that installs it; `ModelError`
    for a network that is still variational, that the format cannot express, or whose file computes something else.
    """
    path, inputs = Path(path), as_tuple(example_inputs)
    chosen = _format(path)
    if is_variational(model):
        raise ModelError(f"{type(model).__name__} still has posteriors; export what bake_ or shrink gives back")
    room = importlib.import_module(f".{chosen.module}", __package__)
    dynamic = dynamic_batch and chosen.dynamic
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder) / path.name
        with evaluation_mode(model):
            try:
                room.write(model, _traceable(inputs) if dynamic else inputs, written, dynamic)
            except ImportError as error:
                raise SettingError(f"{path}: {chosen.title} lacks {error.name}: {chosen.install}") from None
            except Exception as error:  # of the exporter, whatever it raises
                raise ModelError(
                    f"{chosen.title} cannot express {type(model).__name__}: {describe_error(error)}"
                ) from error
            found = _compared(model, room.opened(written), inputs, chosen, dynamic, written)
        if not found.ok:
            raise ModelError(f"{path}: the file computes something else than {type(model).__name__}: {found}")
        os.replace(written, path)
    return found


def opened(path: Path | str) -> Run:
    """Run a file of `export` in its runtime: a function from a tuple of inputs to the output.

    Raises `SettingError` for an unknown suffix or a missing package.
    """
    path = Path(path)
    run: Run = importlib.import_module(f".{_format(path).module}", __package__).opened(path)
    return run


def _format(path: Path) -> Format:
    if path.suffix not in FORMATS:
        known = ", ".join(f"{suffix} ({one.title})" for suffix, one in FORMATS.items())
        raise SettingError(f"{path}: no export format has the suffix {path.suffix!r}; there are {known}")
    chosen = FORMATS[path.suffix]
    if chosen.missing:
        raise SettingError(f"{path}: {chosen.title} needs {', '.join(chosen.missing)}: {chosen.install}")
    return chosen


def _traceable(inputs: Arrays) -> Arrays:
    """A batch of one would be taken for a constant."""
    return tuple(value if len(value) > 1 else torch.cat([value, value]) for value in inputs)


def _compared(model: nn.Module, run: Run, inputs: Arrays, chosen: Format, dynamic: bool, path: Path) -> Comparison:
    generator = torch.Generator().manual_seed(0)
    sizes = BATCHES if dynamic else (len(inputs[0]),)
    absolute = largest = 0.0
    for size in sizes:
        drawn = draw_inputs(inputs, size, generator)
        batch = tuple(value.to(like.dtype) for value, like in zip(drawn, inputs, strict=True))
        with torch.no_grad():
            expected = model(*batch)
        difference = float((expected - run(batch)).abs().max())
        absolute = max(absolute, difference if difference == difference else float("inf"))
        largest = max(largest, float(expected.abs().max()))
    return Comparison(chosen.title, absolute, absolute / max(largest, 1e-30), sizes, path.stat().st_size)
