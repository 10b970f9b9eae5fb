"""One photo: from the bytes of a file to pixels, whatever its mode, and from pixels to the input's size."""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from timm.data.transforms_factory import create_transform
from torch import Tensor

from ..errors import DataError, describe_error
from ..preprocessing import Preprocessing

GRAY = ("1", "L", "LA", "La", "I", "I;16", "I;16L", "I;16B", "I;16N")
"""Modes of Pillow without color."""
Transform = Callable[[Image.Image], Tensor]
"""From a photo in RGB or L to a uint8 image, shape (channels, height, width)."""
Encoded = bytes | Image.Image
"""A file's content, or a photo that its reader has decoded."""


def decode_photo(content: Encoded) -> Image.Image:
    """Decode a photo, turned upright as its EXIF tag says.

    Colors come as `Image.convert` makes them, transparency is dropped; of 16 bits the upper 8 count.

    Args:
        content: The bytes of the file, or a photo that is decoded.

    Returns:
        A photo in mode L where it has no color, else in RGB.

    Raises:
        DataError: The photo cannot be decoded.
    """
    try:
        photo = Image.open(io.BytesIO(content)) if isinstance(content, bytes) else content
        photo.load()
        if isinstance(content, bytes):
            ImageOps.exif_transpose(photo, in_place=True)
        return _convert(photo)
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise DataError(_describe(error)) from error


def _describe(error: Exception) -> str:
    # Pillow names the object that holds the bytes, by its address in memory, which is of no use to anybody.
    return "not an image that Pillow knows" if isinstance(error, UnidentifiedImageError) else describe_error(error)


def _convert(photo: Image.Image) -> Image.Image:
    if photo.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is not known")
    if photo.mode.startswith("I"):
        # Pillow would cut 16 bits off at 255: nearly all of the photo would be white.
        upper = np.asarray(photo) >> 8
        return Image.fromarray(upper.clip(0, 255).astype(np.uint8))
    if photo.mode in GRAY:
        return to_mode(photo, "L")
    if "transparency" in photo.info and photo.mode == "P":
        photo = photo.convert("RGBA")
    return to_mode(photo, "RGB")


def to_mode(photo: Image.Image, mode: str) -> Image.Image:
    """Convert a photo to another mode; unlike `Image.convert`, do not copy one that has it."""
    return photo if photo.mode == mode else photo.convert(mode)


def check_photo(content: bytes) -> str:
    """Check a photo by its header and its end, and decode it only where these do not settle it.

    Args:
        content: The bytes of the file.

    Returns:
        Pillow's mode of the photo.

    Raises:
        DataError: The photo cannot be decoded.
    """
    try:
        photo = Image.open(io.BytesIO(content))
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise DataError(_describe(error)) from error
    if not _ends_well(photo, content):
        decode_photo(content)
    return photo.mode


def _ends_well(photo: Image.Image, content: bytes) -> bool:
    """Whether a JPEG or PNG has its end mark, which a file that was cut off lacks."""
    if photo.mode == "F":
        return False
    if photo.format == "JPEG":
        return content.endswith(b"\xff\xd9")
    return photo.format == "PNG" and content[-8:-4] == b"IEND"


def to_tensor(photo: Image.Image) -> Tensor:
    """The pixels as they are: uint8, shape (channels, height, width)."""
    pixels = torch.from_numpy(np.array(photo))
    return pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1).contiguous()


def has_input_size(size: tuple[int, int], preprocessing: Preprocessing) -> bool:
    """Whether photos of this (width, height) are neither resized nor cropped."""
    return size == preprocessing.input_size[:0:-1] and preprocessing.crop_pct == 1


def make_transform(preprocessing: Preprocessing) -> Transform:
    """Make timm's transform for evaluation, without its normalization.

    Args:
        preprocessing: Size, interpolation and crop.

    Returns:
        A function from a photo to a uint8 image of the input's size.
    """
    transform: Transform = create_transform(
        preprocessing.input_size,
        is_training=False,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        # The color of the border in crop mode "border"; while it is not known yet, timm's own serves.
        mean=preprocessing.mean or IMAGENET_DEFAULT_MEAN,
        use_prefetcher=True,  # the images stay uint8, and are not normalized
    )

    def apply(photo: Image.Image) -> Tensor:
        # timm's steps would leave such a photo as it is, but take longer than reading it.
        return to_tensor(photo) if has_input_size(photo.size, preprocessing) else transform(photo)

    return apply
