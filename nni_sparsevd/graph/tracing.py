"""A network as a flat, functional list of operators, recorded while it runs without data."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ..errors import TraceError, describe_error
from .culprits import find_failing_module
from .example_inputs import CallArguments, Inputs, as_arguments
from .modes import copy_model, without_compilation
from .multihead import free_attentions_
from .names import Names, find_names, named_states
from .nodes import Graph
from .origins import name_numbers_
from .pytrees import PLAIN, name_leaves
from .recorder import Recorder, ValueDependenceError
from .traces import Trace


def trace(model: nn.Module, example_inputs: Inputs) -> Trace:
    """Record what `model` computes on `example_inputs`; the model is left as it was.

    Operators without a rule are recorded as those that they consist of, where they do.  In-place operators are
    recorded as functional ones, so a value never changes after its node.  The network runs on PyTorch's `meta`
    device, which computes shapes only; where the code does not stand that, it runs on the example inputs.

    Args:
        model: The network.
        example_inputs: What it is called with; see `as_arguments`.

    Returns:
        The operators.

    Raises:
        TraceError: The network fails on the inputs, or its control flow depends on their values; the message names the
            module.
        ModelError: The network holds something that cannot be copied.
    """
    device = next((parameter.device for parameter in model.parameters()), None)
    inputs = as_arguments(example_inputs).map_tensors(lambda value: value.to(device))
    runner = make_traceable_copy(model, on_meta=True)
    attempt = record(runner, inputs, on_meta=True)
    if attempt.error is None and any(_is_whole(value) for value in inputs.tensors):
        # Without data no table notices that it is asked for a row that it does not have.
        _require_run(make_traceable_copy(model, on_meta=False), inputs)
    if attempt.error is not None:
        attempt = record(make_traceable_copy(model, on_meta=False), inputs, on_meta=False)
    if attempt.error is not None:
        place = f" in {attempt.place}" if attempt.place else ""
        raise TraceError(
            f"{type(model).__name__} could not be traced on {inputs.shapes}{place}: {describe_error(attempt.error)}"
            f"{_suggest_another_form(inputs, attempt.error)}"
        ) from attempt.error
    return replace(attempt.trace, runner=runner) if attempt.trace.on_meta else attempt.trace


def _is_whole(value: Tensor) -> bool:
    return value.dtype not in (torch.bool, torch.uint8) and not value.is_floating_point() and not value.is_complex()


def _require_run(model: nn.Module, inputs: CallArguments) -> None:
    """Raise `TraceError` where a copy of a network does not run on the values of the example."""
    try:
        with torch.no_grad():
            inputs.map_tensors(torch.clone).call(model)
    except Exception as error:  # whatever a user's forward raises
        module = find_failing_module(model, inputs)
        place = f" in {module}" if module else ""
        raise TraceError(
            f"{type(model).__name__} fails on the example, {inputs.shapes}{place}: {describe_error(error)}"
        ) from error


def _suggest_another_form(inputs: CallArguments, error: Exception) -> str:
    """What a user may have meant by example inputs that the signature of the network does not fit."""
    if not isinstance(error, TypeError):
        return ""
    if inputs.kwargs and not inputs.args:
        return "; a dict is passed by keyword, and as one argument if it is in a tuple: ({...},)"
    if len(inputs.args) == 1 and isinstance(inputs.args[0], list):
        return "; a list is one argument, and a tuple holds several"
    return ""


@dataclass(frozen=True)
class Attempt:
    """What was recorded before the network ended or failed."""

    trace: Trace
    error: Exception | None
    place: str
    """The module that was running when the network failed."""
    in_operator: bool
    """Whether an operator failed, the one after the last node; else the code between two operators did."""


def make_traceable_copy(model: nn.Module, *, on_meta: bool) -> nn.Module:
    """A copy of a network that `record` may run: its forward pass may write to buffers, and its numbers have origins.

    Args:
        model: The network.
        on_meta: Whether the copy has only the shapes of parameters and buffers; else it shares the parameters with
            `model`, and has buffers of its own.

    Returns:
        The copy, in evaluation mode.
    """
    memo: dict[int, Any] = {}
    for buffer in list(model.buffers()):
        memo[id(buffer)] = buffer.to("meta") if on_meta else buffer.clone()
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.to("meta"), parameter.requires_grad) if on_meta else parameter
    traceable = copy_model(model, memo).eval()
    free_attentions_(traceable)
    name_numbers_(traceable)
    return traceable


def record(model: nn.Module, inputs: CallArguments, *, on_meta: bool, names: Names | None = None) -> Attempt:
    """Run `model`, the result of `make_traceable_copy`; see `trace`.

    A network that looks at the values of its inputs is run once more as `torch.export` would run it.

    Args:
        model: The copy.
        inputs: What it is called with.
        on_meta: Whether the copy has only shapes.
        names: What `find_names` says of the copy, where that is known.

    Returns:
        What was recorded.
    """
    names = names or find_names(model)
    # 1. Many networks look at values only to save work: those of Hugging Face leave out a mask that hides nothing.
    # 2. They ask PyTorch whether they are being exported, and then take the path that is right for all values.
    # 3. What was recorded on that way is compared later with the network as it runs ordinarily.
    attempt = _record_once(model, inputs, on_meta, names)
    if not isinstance(attempt.error, ValueDependenceError):
        return attempt
    with _pretend_to_export():
        exported = _record_once(model, inputs, on_meta, names)
    return attempt if exported.error is not None else exported


@contextmanager
def _pretend_to_export() -> Iterator[None]:
    """Set what `torch.compiler.is_compiling` and `is_exporting` say, as `torch.export` does while it traces."""
    compiler: Any = torch.compiler
    before = compiler._is_compiling_flag, compiler._is_exporting_flag
    try:
        compiler._is_compiling_flag = compiler._is_exporting_flag = True
        yield
    finally:
        compiler._is_compiling_flag, compiler._is_exporting_flag = before


def _record_once(model: nn.Module, inputs: CallArguments, on_meta: bool, names: Names) -> Attempt:
    # Copies, because a network may write to its inputs, and because one tensor may be several of them.
    try:
        inputs = inputs.map_tensors(lambda value: value.to("meta") if on_meta else value.detach().clone())
    except Exception as refusal:  # of a class that wants its tensors to have data, such as a packed sequence
        return Attempt(Trace(Graph(), frozenset(), on_meta, inputs), refusal, "", in_operator=False)
    recorder = Recorder(names, inputs.tensors)
    name_of = names.name_of
    enter = register_module_forward_pre_hook(lambda module, args: recorder.enter(name_of.get(id(module), ""), args))
    leave = register_module_forward_hook(lambda module, inputs, output: recorder.leave(output))
    error = None
    try:
        # Inference mode, because then PyTorch shows operators whole that it would take apart for autograd.
        with torch.inference_mode(), without_compilation(), recorder.origins, recorder:
            outputs = inputs.call(model)
        recorder.graph.add("output", "output", (tuple(recorder.node(value) for value in _find_tensors(outputs)),))
    except Exception as raised:  # whatever a user's forward raises
        error = raised
    finally:
        enter.remove()
        leave.remove()
    replaced = {name for name, value in named_states(model) if id(value) not in names.state_of}
    recorded = Trace(recorder.graph, names.layers, on_meta, inputs, frozenset(recorder.written | replaced))
    return Attempt(recorded, error, recorder.place, recorder.in_operator)


def _find_tensors(outputs: Any) -> list[Tensor]:
    """The tensors of an output, whatever holds them."""
    tensors = []
    for name, leaf in name_leaves(outputs):
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
        elif not isinstance(leaf, PLAIN):
            place = f"the output {name}" if name else "the output"
            raise TraceError(f"{place} is of the class {type(leaf).__name__}, and what it holds is unknown")
    return tensors
