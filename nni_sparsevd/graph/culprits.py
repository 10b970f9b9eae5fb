"""Which module is to blame where a network fails, or makes NaN."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from .example_inputs import CallArguments
from .pytrees import name_leaves


def find_failing_module(model: nn.Module, arguments: CallArguments) -> str:
    """Find the innermost module that runs when a network fails.

    Args:
        model: The network, in the mode in which it fails.
        arguments: What it fails on.

    Returns:
        The module's name; empty where the network's own code fails, or where it does not fail again.
    """
    running: list[nn.Module] = []
    with _hooks(enter=running.append, leave=lambda *_: running.pop()), torch.no_grad():
        try:
            arguments.map_tensors(torch.clone).call(model)
        except Exception:  # the error that the caller describes
            return _name_of(model, running[-1]) if running else ""
    return ""


def find_source_of_nan(model: nn.Module, arguments: CallArguments) -> str | None:
    """Find where NaN comes up first in a network.

    Args:
        model: The network, in the mode in which it runs.
        arguments: What it is called with.

    Returns:
        A parameter or buffer that holds NaN, or else the first module whose output does, in words; None where there is
        none.
    """
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if bool(value.isnan().any()):
            return f"{name} holds NaN"
    sources: list[str] = []

    def note(module: nn.Module, outputs: Any) -> None:
        if not sources and _has_nan(outputs):
            sources.append(f"the first NaN comes out of {_name_of(model, module) or 'the network itself'}")

    with _hooks(enter=lambda _: None, leave=note), torch.no_grad():
        arguments.map_tensors(torch.clone).call(model)
    return sources[0] if sources else None


def _has_nan(outputs: Any) -> bool:
    return any(isinstance(leaf, Tensor) and bool(leaf.isnan().any()) for _, leaf in name_leaves(outputs))


def _name_of(model: nn.Module, module: nn.Module) -> str:
    return next((name for name, other in model.named_modules() if other is module), type(module).__name__)


@contextmanager
def _hooks(enter: Callable[[nn.Module], object], leave: Callable[[nn.Module, Any], object]) -> Iterator[None]:
    """Call functions before and after each module runs."""

    def before(module: nn.Module, _: Any) -> None:
        enter(module)

    def after(module: nn.Module, _: Any, outputs: Any) -> None:
        leave(module, outputs)

    hooks = [register_module_forward_pre_hook(before), register_module_forward_hook(after)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
