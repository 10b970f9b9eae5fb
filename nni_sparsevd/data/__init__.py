"""Images and their labels: held in memory where they fit, streamed otherwise."""

from .augmentation import BatchAugmentation, augment
from .datasets import DataSets, load_data, to_channels_last
from .photos import decode_photo, make_transform
from .splits import Pick, Split

__all__ = [
    "BatchAugmentation",
    "DataSets",
    "Pick",
    "Split",
    "augment",
    "decode_photo",
    "load_data",
    "make_transform",
    "to_channels_last",
]
