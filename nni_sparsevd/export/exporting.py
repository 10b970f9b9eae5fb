"""`export`: write a network for another runtime, run the file there, compare, and only then give it its name."""

import importlib.util
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from ..errors import ModelError, SettingError, describe_error
from ..graph import Inputs, as_arguments, evaluation_mode
from ..nn import is_variational
from ..shrinking import batch_sizes, draw_inputs

TOLERANCE = 1e-4
"""Largest difference between two runtimes in float32, relative to the largest output."""
BATCHES = (1, 2, 3)
"""Batch sizes that a file with a dynamic batch is compared at."""
Arrays = tuple[Tensor, ...]
Run = Callable[[Arrays], Tensor]
"""What runs a file: from its inputs to its output."""


@dataclass(frozen=True)
class Format:
    """A file format, with the runtime that opens it."""

    title: str
    module: str
    """File of this room with `write(model, inputs, path, dynamic_batch)` and `open_file(path)`, which gives a `Run`."""
    needs: tuple[str, ...]
    """Packages that must be installed."""
    install: str
    """Command that installs them."""
    dynamic: bool
    """Whether a file can serve all batch sizes."""
    runs_code: bool = False
    """Whether opening a file can run code that it holds."""

    @property
    def missing(self) -> list[str]:
        """Needed packages that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


FORMATS = {
    ".onnx": Format("ONNX", "onnx", ("onnx", "onnxscript", "onnxruntime"), "pip install 'nni_sparsevd[export]'", True),
    ".pt2": Format("torch.export", "torch_export", (), "", True, runs_code=True),
    ".pte": Format("ExecuTorch", "executorch", ("executorch",), "pip install 'nni_sparsevd[mobile]'", False),
    ".tflite": Format(
        "LiteRT", "litert", ("litert_torch", "ai_edge_litert"), "pip install litert-torch ai-edge-litert", False
    ),
}
"""Formats by the suffix of their files.  A new runtime is one file of this room and one row here."""


@dataclass(frozen=True)
class Comparison:
    """The network against its exported file, over random inputs."""

    format: str
    max_abs: float
    """Largest absolute difference between two outputs."""
    max_rel: float
    """The same, relative to the largest output."""
    batches: tuple[int, ...]
    """Batch sizes that were compared."""
    bytes: int
    """Size of the file."""

    @property
    def ok(self) -> bool:
        """Whether the two agree as closely as float32 lets two runtimes agree."""
        return self.max_rel <= TOLERANCE

    def to_dict(self) -> dict[str, object]:
        """Give all fields and the verdict, ready for JSON."""
        return {**asdict(self), "ok": self.ok}

    def __str__(self) -> str:
        sizes = ", ".join(str(size) for size in self.batches)
        difference = f"largest difference {self.max_abs:.2g} (relative {self.max_rel:.2g}), batches of {sizes}"
        return f"{self.format}: {self.bytes:,} bytes; {difference}"


def export(model: nn.Module, path: Path | str, example_inputs: Inputs, *, dynamic_batch: bool = True) -> Comparison:
    """Write a network for another runtime, run the file there, and compare it with the network.

    The file appears under its name only when both agree, whole or not at all.  The network is left as it was.

    Args:
        model: A network without posteriors; it is exported in evaluation mode.
        path: The file to write; its suffix says the format: .onnx, .pt2, .pte or .tflite.
        example_inputs: A tensor or a tuple of tensors that the network accepts.
        dynamic_batch: Let the file take any batch size, where the format can (.onnx, .pt2).  Otherwise the batch size
            is that of `example_inputs`.

    Returns:
        The comparison of the file with the network on random inputs.

    Raises:
        SettingError: The suffix is unknown, or a package is missing; the message has the command that installs it.
        ModelError: The network is still variational, the format cannot express it, or the file computes something else.
    """
    path, inputs = Path(path), as_arguments(example_inputs).tensors
    chosen = _find_format(path)
    if is_variational(model):
        raise ModelError(f"{type(model).__name__} still has posteriors; export what bake_ or shrink gives back")
    dynamic = dynamic_batch and chosen.dynamic
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder) / path.name
        with evaluation_mode(model):
            _write(model, inputs, written, chosen, dynamic)
            comparison = _compare(model, open_file(written), inputs, chosen, dynamic, written.stat().st_size)
        if not comparison.ok:
            raise ModelError(f"{path}: the file computes something else than {type(model).__name__}: {comparison}")
        os.replace(written, path)
    return comparison


def open_file(path: Path | str) -> Run:
    """Open a file of `export` in its runtime.

    Args:
        path: The file; its suffix says the runtime.

    Returns:
        A function from a tuple of inputs to the output.

    Raises:
        SettingError: The suffix is unknown, or a package is missing.
    """
    path = Path(path)
    run: Run = _module_of(_find_format(path)).open_file(path)
    return run


def _find_format(path: Path) -> Format:
    """Find the format of the suffix, and see that its packages are there."""
    if path.suffix not in FORMATS:
        known = ", ".join(f"{suffix} ({known.title})" for suffix, known in FORMATS.items())
        raise SettingError(f"{path}: no export format has the suffix {path.suffix!r}; there are {known}")
    chosen = FORMATS[path.suffix]
    if chosen.missing:
        raise SettingError(f"{path}: {chosen.title} needs {', '.join(chosen.missing)}: {chosen.install}")
    return chosen


def _module_of(chosen: Format) -> ModuleType:
    """Import the format's file, which imports its runtime."""
    return importlib.import_module(f".{chosen.module}", __package__)


def _write(model: nn.Module, inputs: Arrays, path: Path, chosen: Format, dynamic: bool) -> None:
    """Write the file; what the exporter raises becomes an error of ours that names the network."""
    try:
        # a batch of one would be traced as a constant, and then no other size would be accepted
        traced = tuple(_at_least_two(value) for value in inputs) if dynamic else inputs
        _module_of(chosen).write(model, traced, path, dynamic)
    except ImportError as error:
        raise SettingError(f"{path.name}: {chosen.title} lacks {error.name}: {chosen.install}") from None
    except Exception as error:  # exporters raise whatever their tracers raise
        raise ModelError(f"{chosen.title} cannot express {type(model).__name__}: {describe_error(error)}") from error


def _at_least_two(value: Tensor) -> Tensor:
    return value if len(value) > 1 else torch.cat([value, value])


def _compare(model: nn.Module, run: Run, inputs: Arrays, chosen: Format, dynamic: bool, size: int) -> Comparison:
    """Run both on the same random inputs, at several batch sizes where the file takes them."""
    generator = torch.Generator().manual_seed(0)
    batches = BATCHES if dynamic else (len(inputs[0]),)
    largest_difference = largest_output = 0.0
    for batch in batches:
        example = as_arguments(inputs)
        drawn = draw_inputs(example, batch_sizes(example, batch), generator).tensors
        typed = tuple(value.to(like.dtype) for value, like in zip(drawn, inputs, strict=True))
        with torch.no_grad():
            expected = model(*typed)
        difference = float((expected - run(typed)).abs().max())
        # max() would drop a NaN, which is the largest difference there is
        largest_difference = max(largest_difference, float("inf") if math.isnan(difference) else difference)
        largest_output = max(largest_output, float(expected.abs().max()))
    relative = largest_difference / max(largest_output, 1e-30)
    return Comparison(chosen.title, largest_difference, relative, batches, size)
