"""Fake integers: a network in training rounds to what integers of eight bits can hold, and learns to tolerate it.

Why not torchao's own training for integers, which the post-training quantizer of ExecuTorch belongs to:

1. PT2E trains an exported graph, in which the modules are gone: masks, averages, checkpoints and the copies that are
   validated all find weights by module.  It rounds where the quantizer of one runtime does; this serves all of them.
2. `torchao.quantization.qat` puts fake integers into linear layers and embeddings alone, not into convolutions.
3. PyTorch has deprecated the modules of torch.ao.quantization, but not the operators below them, which are used here.
"""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import ModelError

RANGES, BATCHES = "int8_ranges", "int8_batches"
"""Buffers of a network with fake integers, shapes (places, 2) and ()."""
SHARE = 0.01
"""Part of a range that comes from the last batch."""
OBSERVED = 0.8
"""Part of the batches whose ranges count; in the rest the weights settle on steps that no longer move."""
SMALLEST_STEP = float(torch.finfo(torch.float32).eps)
LAYERS: dict[Callable[..., Any], int] = {
    F.linear: 0,
    torch.conv1d: 0,
    torch.conv2d: 0,
    torch.conv3d: 0,
    torch.conv_transpose1d: 1,
    torch.conv_transpose2d: 1,
    torch.conv_transpose3d: 1,
}
"""What multiplies by a weight -> the weight's axis of output channels."""
SUMS = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__}
SUMS_IN_PLACE = {Tensor.add_, Tensor.__iadd__}
CURVES = {
    F.silu, F.hardswish, F.hardsigmoid, F.gelu, F.mish, F.leaky_relu,
    torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh,
}  # fmt: skip
"""Activations whose inputs are rounded.  Runtimes compute a ReLU or another clamp as a part of the layer before it."""


@final
class FakeIntegers:
    """Gives a network fake integers of eight bits, in place, until `remove_`.

    Rounded are the weights and inputs of linear layers and convolutions, the addends of residual sums, inputs of curved
    activations and the output: what the quantizers of ONNX Runtime, XNNPACK and LiteRT have in common.  The gradient
    passes a rounding as if it were not there (straight-through), and is zero for a value outside of its range.

    - A weight w of an output channel becomes s * round(w / s) with s = max |w| / 127, so that zero stays zero.  A batch
      norm that is folded into the layer later multiplies w and s alike: the rounding is that of the folded weight.
    - An activation x becomes s * (round(x / s) + z) - s * z, clamped to 256 steps, with s = (max - min) / 255 and the
      whole number z nearest to -min / s.  Its range, which always holds 0, is a moving average over the batches of
      training of their smallest and largest values; at first it is their mean.

    Ranges and the count of batches are buffers of the network: they are saved, averaged and copied with it.  In
    evaluation mode ranges stay.  The network computes in float32, whatever precision it is called in: steps of bfloat16
    are as coarse as those of the integers.

    Args:
        model: The network.  It takes one batch of inputs and gives one tensor.
        example_inputs: What it is called with.
        batches: How many batches it will be trained on.

    Raises:
        ModelError: The network multiplies and adds at other places in training than in evaluation.
    """

    def __init__(self, model: nn.Module, example_inputs: Tensor, batches: int) -> None:
        self._model, self._observed = model, OBSERVED * batches
        self._stack, self._rounding = ExitStack(), _Rounding()
        parameter = next(model.parameters())
        ranges = torch.zeros(count_places(model, example_inputs) + 1, 2, device=parameter.device)
        model.register_buffer(RANGES, ranges)
        model.register_buffer(BATCHES, torch.zeros((), dtype=torch.int64, device=parameter.device))
        self._hooks = (
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end, always_call=True),
        )

    def remove_(self) -> None:
        """Give the network back without them, with the weights that it has learned."""
        for hook in self._hooks:
            hook.remove()
        del self._model._buffers[RANGES], self._model._buffers[BATCHES]

    def _begin(self, module: nn.Module, arguments: Any) -> None:
        """Round from here on.  `module` is the network or a copy, which has buffers of its own."""
        ranges, batches = module.get_buffer(RANGES), module.get_buffer(BATCHES)
        share = None
        if module.training:
            batches += 1
            # All of it stays on the device: reading the count would make it wait.
            share = torch.where(batches <= self._observed, (1 / batches).clamp(min=SHARE), 0.0)
        self._stack, self._rounding = ExitStack(), _Rounding(ranges, share)
        self._stack.enter_context(torch.autocast(ranges.device.type, enabled=False))
        self._stack.enter_context(self._rounding)

    def _end(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        """Round no longer, and round the output."""
        self._stack.close()
        if output is None:  # the network has failed
            return None
        self._rounding.check_last()
        return self._rounding.round(output)


def count_places(model: nn.Module, example_inputs: Tensor) -> int:
    """Count the values that a network with fake integers rounds on the way to its output, weights aside.

    Args:
        model: The network; it stays as it is.
        example_inputs: What it is called with.

    Returns:
        The number of places.

    Raises:
        ModelError: It has other places in training than in evaluation.
    """
    counts: list[int] = []
    for training in (False, True):
        trial = copy.deepcopy(model).train(training)
        with torch.no_grad(), _Rounding() as rounding:
            trial(example_inputs.to(next(trial.parameters()).device))
        counts.append(rounding.place)
    if counts[0] != counts[1]:
        raise ModelError(
            f"quantize.aware: {type(model).__name__} rounds {counts[1]} values in training and {counts[0]} in "
            "evaluation; for integers of eight bits it has to compute the same in both"
        )
    return counts[0]


@final
class _Rounding(TorchFunctionMode):
    """One forward pass in which values are rounded; without ranges they are only counted.

    A place is known by its number: a network calls its functions in the same order every time.
    """

    def __init__(self, ranges: Tensor | None = None, share: Tensor | None = None) -> None:
        super().__init__()
        self._ranges, self._share = ranges, share
        self.place: int = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in LAYERS:
            return self._call_layer(function, *args, **kwargs)
        if function in CURVES:
            return self._call_curve(function, *args, **kwargs)
        if function in SUMS and _adds_alike(args):
            return function(self.round(args[0]), self.round(args[1]), *args[2:], **kwargs)
        if function in SUMS_IN_PLACE and _adds_alike(args):
            # Others may hold the tensor, and see the sum.
            return args[0].copy_(torch.add(self.round(args[0]), self.round(args[1]), **kwargs))
        return function(*args, **kwargs)

    def _call_layer(self, function: Any, input: Tensor, weight: Tensor, *rest: Any, **others: Any) -> Any:
        return function(self.round(input), _round_weight(weight, LAYERS[function]), *rest, **others)

    def _call_curve(self, function: Any, input: Tensor, *rest: Any, **others: Any) -> Any:
        return function(self.round(input), *rest, **others)

    def round(self, value: Tensor) -> Tensor:
        """Round an activation, after its range has taken the batch in where ranges are observed."""
        place, self.place = self.place, self.place + 1
        if self._ranges is None:
            return value
        if place == len(self._ranges):
            raise self._refuse()
        limits = self._ranges[place]
        value = value.float()
        if self._share is not None:
            limits.lerp_(torch.stack(torch.aminmax(value.detach())), self._share)
        low, high = limits.clamp(max=0)[0], limits.clamp(min=0)[1]
        step = ((high - low) / 255).clamp(min=SMALLEST_STEP)
        zero = (-low / step).round().to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(value, step, zero, 0, 255)

    def check_last(self) -> None:
        """See that only the output is left to be rounded."""
        if self._ranges is not None and self.place != len(self._ranges) - 1:
            raise self._refuse()

    def _refuse(self) -> ModelError:
        return ModelError(
            "quantize.aware: the network does not compute the same for every batch: it rounds other values than for "
            "the images that it was tried on"
        )


def _adds_alike(arguments: Any) -> bool:
    """Whether a residual sum is called for: two tensors of floats, of one shape."""
    first, second = arguments[:2]
    if not isinstance(first, Tensor) or not isinstance(second, Tensor) or first.shape != second.shape:
        return False
    return first.dim() > 1 and first.is_floating_point() and second.is_floating_point()


def _round_weight(weight: Tensor, axis: int) -> Tensor:
    """Round a weight, with a step for each index of an axis."""
    others = [other for other in range(weight.dim()) if other != axis]
    step = (weight.detach().abs().amax(others) / 127).clamp(min=SMALLEST_STEP)
    zero = torch.zeros_like(step, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, step, zero, axis, -127, 127)
