"""Where images may not lie channels last in memory, because PyTorch would crash."""

import torch
from accelerate.logging import get_logger
from torch import Tensor, nn

from ..data import to_channels_last
from ..graph import list_modules

logger = get_logger(__name__)  # of several processes, the main one speaks


def lay_out(images: Tensor, model: nn.Module, *, channels_last: bool) -> Tensor:
    """Lay images out as a network should be trained on them, and warn once where that is not as wanted.

    Args:
        images: Images, shape (count, channels, height, width).
        model: The network; channels may have been removed from it since the last step.
        channels_last: Whether images are wanted channels last.

    Returns:
        The same images.
    """
    if not channels_last:
        return images
    layer = find_layer_against_channels_last(model)
    if layer is not None:
        logger.warning_once(
            f"channels_last is off: with it, PyTorch crashes on this processor in the backward pass of {layer}, a "
            "strided convolution of one pixel with fewer than 8 input channels"
        )
        return images
    return to_channels_last(images)


def find_layer_against_channels_last(model: nn.Module) -> str | None:
    """The name of a layer whose backward pass writes past its memory where channels lie last, None if there is none.

    Seen with PyTorch 2.14.1 on processors with AVX2 and without AVX-512: strided convolutions of one pixel with fewer
    than 8 input channels in a group (docs/scale.md).
    """
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return None
    return next((name for name, module in list_modules(model) if _writes_past_its_memory(module)), None)


def _writes_past_its_memory(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and set(layer.kernel_size) == {1}
        and max(layer.stride) > 1
        and layer.in_channels // layer.groups < 8
        and layer.weight.device.type == "cpu"
    )
