"""`export`: write a network for another runtime, run the file there, compare, and only then give it its name."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from ..errors import ModelError, SettingError, describe_error
from ..files import replace_when_whole
from ..graph import CallArguments, Inputs, as_arguments, copy_model, resize_inputs
from ..nn import is_variational
from ..preprocessing import check_values, read_values
from ..shrinking import Variant, VariantSearch, batch_sizes, to_type
from .arguments import (
    FlatNetwork,
    Outputs,
    Tracing,
    has_known_classes,
    is_flat,
    name_inputs,
    name_outputs,
    return_plain_outputs_,
)
from .file_comparison import Comparison, FileComparison
from .inputs import write_beside, write_into_file
from .quantization import Quantization, QuantizedComparison, check_quantization, split_calibration

BATCHES = (1, 2, 3)
"""Batch sizes that a file with a dynamic batch is compared at."""
Run = Callable[[CallArguments], Outputs]
"""What runs a file: from its arguments to its outputs by name."""


@dataclass(frozen=True)
class Format:
    """A file format, with the runtime that opens it."""

    title: str
    module: str
    """File of this room with `write(model, tracing, path)` and `open_file(path)`, which gives a `Run`."""
    needs: tuple[str, ...]
    """Packages that must be installed."""
    install: str
    """Command that installs them."""
    dynamic: bool
    """Whether a file can serve all batch sizes."""
    keeps_nesting: bool = False
    """Whether a file has nested arguments and outputs; else its inputs and outputs are tensors in a row."""
    runs_code: bool = False
    """Whether opening a file can run code that it holds."""
    quantizer: tuple[str, ...] | None = None
    """Packages that int8 needs besides: the room's file then has `write_int8(model, tracing, path, calibration)`.
    None: there is no int8."""

    @property
    def missing(self) -> list[str]:
        """Needed packages that are not installed."""
        return _find_missing(self.needs)

    def list_missing(self, int8: bool) -> list[str]:
        """List the packages that are needed, for a file of integers or another one, and not installed."""
        return self.missing + _find_missing(self.quantizer or () if int8 else ())


def _find_missing(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


FORMATS = {
    ".onnx": Format(
        "ONNX",
        "onnx",
        ("onnx", "onnxscript", "onnxruntime"),
        "pip install 'nni_sparsevd[export]'",
        True,
        quantizer=(),
    ),
    ".pt2": Format("torch.export", "torch_export", (), "", True, keeps_nesting=True, runs_code=True),
    ".pte": Format(
        "ExecuTorch",
        "executorch",
        ("executorch",),
        "pip install 'nni_sparsevd[mobile]'",
        False,
        quantizer=("torchao",),
    ),
    ".tflite": Format(
        "LiteRT",
        "litert",
        ("litert_torch", "ai_edge_litert"),
        "pip install litert-torch ai-edge-litert ai-edge-quantizer",
        False,
        quantizer=("ai_edge_quantizer",),
    ),
}
"""Formats by the suffix of their files.  A new runtime is one file of this room and one row here."""


def export(
    model: nn.Module,
    path: Path | str,
    example_inputs: Inputs,
    *,
    dynamic_batch: bool = True,
    quantization: Quantization | None = None,
) -> Comparison:
    """Write a network for another runtime, run the file there, and compare it with the network.

    The file appears under its name only when both agree, whole or not at all.  The network is left as it was.  What its
    `pretrained_cfg` says of inputs and classes goes into an ONNX file, and into FILE.json beside any other file.

    Args:
        model: A network without posteriors; it is exported in evaluation mode.
        path: The file to write; its suffix says the format: .onnx, .pt2, .pte or .tflite.
        example_inputs: What the network is called with: a tensor, a tuple of arguments, a dict of keyword arguments, or
            a pair (args, kwargs), in any nesting.  Numbers, strings and None are written into the file.
        dynamic_batch: Let the file take any batch size, where the format can (.onnx, .pt2) and the network does.
            Otherwise the batch size is that of `example_inputs`.
        quantization: Make weights and activations integers of eight bits (.onnx, .pte, .tflite), calibrated on these
            inputs.  Such a file is not equal to the network: the comparison says how often it gives the same class.

    Returns:
        The comparison of the file with the network on random inputs; of int8 on the calibration inputs.

    Raises:
        SettingError: The suffix is unknown, or a package is missing; the message has the command that installs it. Or
            the format has no int8, the calibration inputs do not fit, or `pretrained_cfg` has a value that is not
            allowed.
        ModelError: The network is still variational, fails on the example, or cannot be copied; the format cannot
            express it; its runtime does not run it in its type; or the file computes something else.
        FileFormatError: The file cannot be written there; what was there before is intact.
    """
    path, chosen = Path(path), check_format(Path(path), int8=quantization is not None)
    if is_variational(model):
        raise ModelError(f"{type(model).__name__} still has posteriors; export what bake_ or shrink gives back")
    # A copy, because hooks and example inputs are put into it; on the CPU, where the runtimes are.
    network = copy_model(model).cpu().eval()
    inputs = check_values(read_values(network))
    search = VariantSearch(network, as_arguments(example_inputs), torch.Generator().manual_seed(0))
    if quantization is not None:
        check_quantization(network, search.example, quantization)
    batches = search.find_batches(BATCHES) if dynamic_batch and chosen.dynamic else []
    tracing = _plan_tracing(network, search.example, bool(batches))
    variants = batches or [search.draw_at_own_sizes()]
    with replace_when_whole(path) as written:
        _write(network, tracing, written, chosen, quantization)
        write_into_file(inputs, written)
        if quantization is None:
            comparison = _compare(network, variants, written, chosen)
        else:
            comparison = _compare_int8(network, split_calibration(quantization, tracing), written, chosen)
        if not comparison.ok:
            hint = "" if quantization is None else _suggest_another_processor(path)
            raise ModelError(
                f"{path}: the file computes something else than {type(model).__name__}: {comparison}{hint}"
            )
        write_beside(inputs, path)
    return comparison


def _suggest_another_processor(path: Path) -> str:
    """What may be the matter with a file of integers, other than the file; see docs/export.md."""
    if path.suffix != ".onnx" or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return ""
    return "; on processors without VNNI, as this one may be, integers overflow in ONNX Runtime: try it on another one"


def open_file(path: Path | str) -> Run:
    """Open a file of `export` in its runtime.

    Args:
        path: The file; its suffix says the runtime.

    Returns:
        A function from the arguments of a call to the outputs by name.

    Raises:
        SettingError: The suffix is unknown, or a package is missing.
    """
    path = Path(path)
    run: Run = _module_of(check_format(path)).open_file(path)
    return run


def check_format(path: Path, *, int8: bool = False) -> Format:
    """Find the format of a file, and see that its packages are there, and those of int8 where it is wanted.

    Args:
        path: A file; its suffix says the format.
        int8: Whether it is to hold integers.

    Returns:
        The format.

    Raises:
        SettingError: The suffix is unknown, the format has no int8 here, or a package is missing; the message has the
            command that installs it.
    """
    if path.suffix not in FORMATS:
        known = ", ".join(f"{suffix} ({known.title})" for suffix, known in FORMATS.items())
        raise SettingError(f"{path}: no export format has the suffix {path.suffix!r}; there are {known}")
    chosen = FORMATS[path.suffix]
    if int8 and chosen.quantizer is None:
        known = ", ".join(suffix for suffix, known in FORMATS.items() if known.quantizer is not None)
        raise SettingError(f"{path}: {chosen.title} has no int8 here; {known} have")
    missing = chosen.list_missing(int8)
    if missing:
        raise SettingError(f"{path}: {chosen.title} needs {', '.join(missing)}: {chosen.install}")
    return chosen


def _module_of(chosen: Format) -> ModuleType:
    """Import the format's file, which imports its runtime."""
    return importlib.import_module(f".{chosen.module}", __package__)


def _plan_tracing(network: nn.Module, example: CallArguments, dynamic: bool) -> Tracing:
    """How a network is traced; it is run once for the names of its outputs."""
    with torch.no_grad():
        outputs = name_outputs(example.map_tensors(torch.clone).call(network))
    # A batch of one would be traced as a constant, and then no other size would be accepted.
    sizes = {dim: max(2, example.tensors[dim[0]].shape[0]) for dim in batch_sizes(example, 1)} if dynamic else {}
    arguments = example.with_tensors(resize_inputs(example.tensors, sizes))
    return Tracing(arguments, dynamic, name_inputs(network, example), tuple(outputs))


def _write(network: nn.Module, tracing: Tracing, path: Path, chosen: Format, quantization: Quantization | None) -> None:
    """Write the file; what the exporter raises becomes an error of ours that names the network."""
    try:
        written, traced = _simplify(network, tracing, chosen)
        if quantization is None:
            _module_of(chosen).write(written, traced, path)
        else:
            _module_of(chosen).write_int8(written, traced, path, split_calibration(quantization, traced))
    except ImportError as error:
        raise SettingError(f"{path.name}: {chosen.title} lacks {error.name}: {chosen.install}") from None
    except Exception as error:  # exporters raise whatever their tracers raise
        raise ModelError(f"{chosen.title} cannot express {type(network).__name__}: {describe_error(error)}") from error


def _simplify(network: nn.Module, tracing: Tracing, chosen: Format) -> tuple[nn.Module, Tracing]:
    """The network and its arguments in a form that the format can express."""
    with torch.no_grad():
        output = tracing.arguments.map_tensors(torch.clone).call(network)
    if is_flat(tracing.arguments, output):
        return network, tracing
    if chosen.keeps_nesting and has_known_classes(tracing.arguments):
        simplified = copy_model(network).eval()
        return_plain_outputs_(simplified)
        return simplified, tracing
    flat = FlatNetwork(network, tracing.arguments).eval()
    return flat, replace(tracing, arguments=CallArguments(tracing.arguments.tensors, {}))


def _compare_int8(network: nn.Module, calibration: Iterator[CallArguments], path: Path, chosen: Format) -> Comparison:
    """Run network and file on the calibration inputs."""
    comparison = QuantizedComparison(network, chosen.title)
    with _naming_runtime(chosen, network, "int8"):
        run = open_file(path)
        for arguments in calibration:
            comparison.add(run(CallArguments(arguments.tensors, {})), arguments)
    return comparison.result(path.stat().st_size)


def _compare(network: nn.Module, variants: list[Variant], path: Path, chosen: Format) -> Comparison:
    """Run network and file on the same random inputs."""
    dtype = next((value.dtype for value in network.parameters() if value.is_floating_point()), torch.float32)
    comparison = FileComparison(network, chosen.title)
    batches = []
    with _naming_runtime(chosen, network, str(dtype), "; model.float() is what every runtime knows"):
        run = open_file(path)
        for variant in variants:
            typed = variant.inputs.map_tensors(lambda value: to_type(value, dtype))
            takes_nested = chosen.keeps_nesting and has_known_classes(typed)
            computed = run(typed if takes_nested else CallArguments(typed.tensors, {}))
            comparison.add(computed, typed, variant)
            with_batch = [tensor for tensor in typed.tensors if tensor.dim() > 0]
            if with_batch:
                batches.append(len(with_batch[0]))
    return comparison.result(tuple(batches), path.stat().st_size)


@contextmanager
def _naming_runtime(chosen: Format, network: nn.Module, precision: str, advice: str = "") -> Iterator[None]:
    """Turn what a runtime raises on a file that it has written into an error that says so."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:  # runtimes raise errors of many types, and none is ours
        raise ModelError(
            f"{chosen.title} wrote {type(network).__name__} in {precision}, but its runtime does not run it: "
            f"{describe_error(error)}{advice}"
        ) from error
