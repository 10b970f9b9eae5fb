"""Running two networks alike: on the same inputs, in one type of numbers, with the same random draws."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import ShrinkError
from ..graph import PLAIN, CallArguments, copy_model, name_leaves, without_compilation

Outputs = dict[str, Any]
"""Tensors and plain values, by their places in the output of a network; see `name_leaves`."""
SEED = 0
FLAGS = ("aten::bernoulli", "aten::bernoulli_")
DRAWS = (
    "aten::bernoulli", "aten::bernoulli_", "aten::rand", "aten::rand_like", "aten::randn", "aten::randn_like",
    "aten::randint", "aten::randint_like", "aten::normal", "aten::normal_", "aten::uniform", "aten::uniform_",
    "aten::exponential", "aten::exponential_",
)  # fmt: skip
"""Operators that draw random numbers and do nothing else."""
SETTINGS = (bool, int, float, str, tuple, type(None))
"""Types of the attributes that a forward pass may change for the next one, and that are easily put back."""


def copy_as(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Copy a network to the CPU, in evaluation mode.

    Args:
        model: The network.
        dtype: The type that its numbers get.

    Returns:
        The copy.  Parameters that have this type and are on the CPU are not copied: they have other gradients, but the
        same memory.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        if type(parameter) is nn.Parameter and is_inexact(parameter):
            kind = _type_for(parameter, dtype)
            memo[id(parameter)] = nn.Parameter(parameter.detach().to("cpu", kind), parameter.requires_grad)
    for buffer in model.buffers():  # a network may write to them
        if type(buffer) is Tensor and is_inexact(buffer):
            memo[id(buffer)] = buffer.detach().to("cpu", _type_for(buffer, dtype), copy=True)
    copied = copy_model(model, memo)
    if not all(_holds_only(module, dtype) for module in copied.modules()):
        # Not `to`, which makes complex numbers real.
        copied._apply(lambda value: value.to("cpu", _type_for(value, dtype)))
    return copied.eval()


def is_inexact(value: Tensor) -> bool:
    """Whether the numbers of a tensor are rounded: real or complex ones, as NumPy's `inexact`."""
    return value.is_floating_point() or value.is_complex()


def _type_for(value: Tensor, dtype: torch.dtype) -> torch.dtype:
    """A type of real numbers, or the complex one of the same precision; whole numbers stay what they are."""
    if value.is_complex():
        return dtype.to_complex()
    return dtype if value.is_floating_point() else value.dtype


def _holds_only(module: nn.Module, dtype: torch.dtype) -> bool:
    """Whether moving a module by itself to the CPU, and to this type of numbers, would change nothing."""
    kind: Any = type(module)
    if kind._apply is not nn.Module._apply or kind.to is not nn.Module.to:
        return False
    for value in (*module._parameters.values(), *module._buffers.values()):
        if value is None:
            continue
        if value.device.type != "cpu" or value.dtype != _type_for(value, dtype):
            return False
    return True


@dataclass(frozen=True)
class Run:
    """One run of a network."""

    outputs: Outputs
    draws: bool
    """Whether the network drew random numbers."""


def run_copy(model: nn.Module, inputs: CallArguments, *, uniform_draws: bool = False) -> Run:
    """Run a network of `copy_as`.

    Args:
        model: The network.
        inputs: Its arguments, on the CPU; their numbers get the type of the network's.
        uniform_draws: Whether every random tensor that the network draws holds one number.

    Returns:
        Its outputs, and whether it drew random numbers.

    Raises:
        ShrinkError: An output can be compared with nothing.
    """
    with torch.no_grad(), _same_draws(uniform_draws), _same_state(model), without_compilation():
        before = torch.get_rng_state()
        output = as_numbers_of(model, inputs).call(model)
        return Run(name_outputs(output), not torch.equal(before, torch.get_rng_state()))


def runs_as(model: nn.Module, dtype: torch.dtype, inputs: CallArguments) -> bool:
    """Find out whether a network runs in a type of numbers: its own code may insist on another one.

    Args:
        model: The network.
        dtype: A type of real numbers.
        inputs: Its arguments.

    Returns:
        Whether it does.
    """
    try:
        run_copy(copy_as(model, dtype), inputs)
    except ShrinkError:  # it runs, and the comparison says what is the matter with its outputs
        return True
    except Exception:  # whatever a user's forward raises
        return False
    return True


def remembers_calls(model: nn.Module, inputs: CallArguments) -> bool:
    """Whether a network gives other outputs when it is called again: what it keeps is in no buffer or plain setting.

    Args:
        model: The network.
        inputs: Its arguments.

    Returns:
        Whether the second of two calls differs, with the same random numbers, buffers and settings.
    """
    own_type = next((value.dtype for value in model.parameters() if value.is_floating_point()), torch.float64)
    copied = copy_as(model, torch.float64 if runs_as(model, torch.float64, inputs) else own_type)
    first, second = (run_copy(copied, inputs).outputs for _ in range(2))
    for name, value in first.items():
        again = second.get(name)
        if isinstance(value, Tensor) and not (isinstance(again, Tensor) and torch.equal(value, again)):
            return True
    return False


def to_type(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Give a tensor a type of numbers, where its own are not whole.

    Args:
        value: The tensor.
        dtype: A type of real numbers; complex numbers get the complex type of the same precision.

    Returns:
        A copy: some networks write to their inputs.
    """
    return value.to(_type_for(value, dtype), copy=True)


def as_numbers_of(model: nn.Module, inputs: CallArguments) -> CallArguments:
    """Copy inputs, their numbers in the type of a network's.

    Args:
        model: A network of `copy_as`.
        inputs: Its arguments.

    Returns:
        The copy: some networks write to their inputs.
    """
    types = (parameter.dtype.to_real() for parameter in model.parameters() if is_inexact(parameter))
    dtype = next(types, torch.float64)
    return inputs.map_tensors(lambda value: to_type(value, dtype))


def name_outputs(output: Any) -> Outputs:
    """List what a network returned.

    Args:
        output: Tensors and plain values in any nesting.

    Returns:
        The tensors and values by their places.  Single numbers are tensors, too.

    Raises:
        ShrinkError: An output can be compared with nothing.
    """
    outputs: Outputs = {}
    for name, leaf in name_leaves(output):
        if not isinstance(leaf, (Tensor, *PLAIN)):
            raise ShrinkError(
                f"outputs can be compared if they are tensors or plain values, found {type(leaf).__name__}"
                + (f" at {name}" if name else "")
            )
        is_number = isinstance(leaf, int | float | complex) and not isinstance(leaf, bool)
        outputs[name] = torch.as_tensor(leaf) if is_number else leaf
    return outputs


@contextmanager
def _same_state(model: nn.Module) -> Iterator[None]:
    """Give a network its buffers and settings back afterwards.

    Some networks count their calls or average their inputs. Hugging Face's Swin makes its windows smaller at the first
    small image, and leaves them so.
    """
    buffers_before, settings_before = [], []
    for module in model.modules():
        attributes = vars(module)
        values = {key: value for key, value in attributes.items() if type(value) in SETTINGS}
        settings_before.append((attributes, values))
        for key, value in module._buffers.items():
            buffers_before.append((module._buffers, key, value, None if value is None else value.clone()))
    try:
        yield
    finally:
        for attributes, values in settings_before:
            attributes.update(values)
        for buffers, key, value, numbers in buffers_before:
            buffers[key] = value
            if value is not None and numbers is not None and value.shape == numbers.shape:
                value.copy_(numbers)


@contextmanager
def _same_draws(uniform_draws: bool) -> Iterator[None]:
    """Let the random numbers of torch and Python begin anew, and go on afterwards as if nothing had been drawn."""
    python_state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]), _UniformDraws() if uniform_draws else nullcontext():
            torch.default_generator.manual_seed(SEED)
            random.seed(SEED)
            yield
    finally:
        random.setstate(python_state)


class _UniformDraws(TorchDispatchMode):
    """Makes every random tensor hold one number."""

    # 1. A shrunk network draws fewer numbers: noise on a hidden layer has one number for each channel that is left.
    # 2. So it could not draw what the masked network draws, neither there nor later.
    # 3. With one number for each draw, whatever its shape, both draw the same.
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(SEED)

    def __torch_dispatch__(self, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_draw = target._schema.name in DRAWS
        if is_draw:
            # Whole numbers are drawn one by one: the first one is the same in any shape.
            torch.default_generator.manual_seed(SEED)
        drawn = target(*args, **(kwargs or {}))
        if not is_draw or not drawn.numel():
            return drawn
        share = float(torch.rand((), generator=self._generator))
        if target._schema.name in FLAGS:
            return drawn.fill_(share < 0.5)
        return drawn.fill_(share if drawn.is_floating_point() else drawn.flatten()[0])
