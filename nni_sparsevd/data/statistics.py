"""Mean and deviation of training images, for networks that start from nothing."""

import torch
from torch import Tensor

from .splits import Split, split_range

AT_MOST = 10000
"""Images that are looked at."""
FLOATS = 1 << 25
"""Values up to which the statistics are computed in float32."""
VALUES = 1 << 28
"""Values that are looked at: about 1,800 photos of 224 pixels."""
BATCH = 256


def measure_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Measure mean and standard deviation of each channel, of pixels in [0, 1].

    Args:
        split: The training images; the first ones are looked at.

    Returns:
        The means and the deviations, which are at least 1e-6.
    """
    per_image = split.read([0]).numel()
    count = min(len(split), AT_MOST, max(VALUES // per_image, 1))
    batches = split_range(count, BATCH)
    if count * per_image <= FLOATS:
        # In float32 and at once, because the last bit counts: published results were made so.
        images = torch.cat(list(split.walk(batches)))
        pixels = images.float() / (255 if images.dtype == torch.uint8 else 1)
        mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    else:
        mean, std = _summarize_histogram(sum(_count_values(images) for images in split.walk(batches)))
    return tuple(mean.tolist()), tuple(std.clamp_min(1e-6).tolist())


def _count_values(images: Tensor) -> Tensor:
    """How often each of 256 values is in each channel of uint8 images, shape (channels, 256)."""
    channels = images.transpose(0, 1).flatten(1)
    return torch.stack([torch.bincount(channel, minlength=256) for channel in channels])


def _summarize_histogram(counts: Tensor | int) -> tuple[Tensor, Tensor]:
    """Mean and deviation from whole numbers: exact, whatever the number of images."""
    weights = torch.as_tensor(counts).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    total = weights.sum(1)
    mean = (weights @ values) / total
    variance = ((values - mean[:, None]) ** 2 * weights).sum(1) / (total - 1)
    return mean.float(), variance.sqrt().float()
