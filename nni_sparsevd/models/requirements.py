"""What a network asks of its images."""

from typing import Any

import timm

from ..preprocessing import Requirements, select_values
from ..recipe import ModelSettings
from .paper_networks import OWN_MODELS
from .weights import read_weights


def find_requirements(settings: ModelSettings) -> Requirements:
    """Find out what a network asks of its images, before it is built.

    A network that starts from weights gets the images that these were trained with: as the file of the weights says, or
    else as timm says of the network. One that starts from nothing asks only for a size, if it takes no other.

    Args:
        settings: Which network, and where its weights come from.

    Returns:
        Its requirements.

    Raises:
        FileFormatError: The checkpoint cannot be read.
    """
    entry = timm.get_pretrained_cfg(settings.name) if timm.is_model(settings.name) else None
    configuration: dict[str, Any] = {}
    if entry is not None and settings.name not in OWN_MODELS:
        configuration = select_values(entry.to_dict())
    usual_size = configuration["input_size"][-1] if "input_size" in configuration else None
    only_size = usual_size if configuration.get("fixed_input_size") else None
    image_size = settings.arguments.get("img_size", only_size)
    in_chans = settings.arguments.get("in_chans")
    trained: dict[str, Any] = {}
    if settings.pretrained or settings.checkpoint is not None:
        trained = {key: value for key, value in configuration.items() if key != "label_names"}
    if settings.checkpoint is not None:
        tensors, preprocessing = read_weights(settings.checkpoint)
        trained |= preprocessing
        # The first layer of the weights knows how many channels it reads, whatever timm's images have.
        first_weight = None if entry is None else tensors.get(f"{entry.first_conv}.weight")
        if in_chans is None and first_weight is not None:
            in_chans = first_weight.shape[1]
    if in_chans is None and trained:
        in_chans = trained["input_size"][0]
    return Requirements(
        image_size=image_size if isinstance(image_size, int) else None,
        usual_size=usual_size,
        in_chans=in_chans if isinstance(in_chans, int) else None,
        trained=trained,
    )


def find_image_size(settings: ModelSettings) -> int | None:
    """Find the side of the images that a network is built for; None where it takes any size."""
    if not takes_image_size(settings.name):
        return None
    entry = timm.get_pretrained_cfg(settings.name)
    return int(entry.input_size[-1]) if entry is not None else None


def takes_image_size(name: str) -> bool:
    """Whether timm says that the network is built for one image size."""
    if not timm.is_model(name):
        return False
    entry = timm.get_pretrained_cfg(name)
    return bool(entry is not None and entry.fixed_input_size)
