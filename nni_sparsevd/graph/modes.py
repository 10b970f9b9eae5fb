"""Evaluation mode for a while, and copies without what modules keep from one evaluation to the next."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from .copies import copy_module


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """Set evaluation mode, and give every module its own mode back afterwards."""
    before = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def without_compilation() -> Iterator[None]:
    """Let networks of `torch.compile` run as they are written: at each other size they would be compiled anew."""
    if "torch._dynamo" not in sys.modules:  # to import it takes longer than most networks do
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def clear_caches_(model: nn.Module) -> None:
    """Make modules drop what they keep from one evaluation to the next, such as tables of attention biases.

    Modules do so of themselves when they are set to training.  Each gets its own mode back.
    """
    if not reacts_to_modes(model):
        return
    mode = model.training
    with evaluation_mode(model):
        model.train()
        model.train(mode)  # whatever modules did in the one direction, they undo in the other


def reacts_to_modes(model: nn.Module) -> bool:
    """Whether any module does more than to remember that it is set to training."""
    return any(_reacts_to_modes(module) for module in model.modules())


def _reacts_to_modes(module: nn.Module) -> bool:
    attributes = vars(module)
    kind: Any = type(module)
    return not _has_plain_modes(kind) or "train" in attributes or "training" not in attributes


@cache
def _has_plain_modes(kind: Any) -> bool:
    return kind.train is nn.Module.train and kind.__setattr__ is nn.Module.__setattr__


def copy_model(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """A deep copy without what modules keep between evaluations.

    Args:
        model: The network; its caches are cleared.
        memo: What is copied already, by the id of the original, as `copy.deepcopy` takes it.

    Returns:
        The copy.

    Raises:
        ModelError: The network holds something that cannot be copied; the message names the module and attribute.
    """
    clear_caches_(model)
    return copy_module(model, memo)
