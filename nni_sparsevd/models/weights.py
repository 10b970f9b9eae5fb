"""Weights in files: read, and loaded whole or with a new classifier."""

import json
import logging
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from ..errors import FileFormatError, ModelError
from ..files import load_pickled_tensors, load_tensors
from ..preprocessing import check_values, read_configuration

logger = logging.getLogger(__name__)
PREPROCESSING = "nni_sparsevd.preprocessing"
"""Metadata key of a file of weights: how the images were made that they were trained with, a JSON object."""
PICKLED = (".pth", ".pt", ".bin", ".tar")
"""Suffixes of files of `torch.save`."""


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of weights; nothing but tensors is ever unpickled.

    Args:
        path: A .safetensors file, or a .pth, .pt, .bin or .tar file of `torch.save` that holds tensors only: a state
            dict, or one under "state_dict" or "model".

    Returns:
        Name -> tensor, and how the images were made that the weights were trained with, under timm's names, as far as
        the file says.

    Raises:
        FileFormatError: The file is missing, damaged, or holds anything but tensors.
    """
    if path.suffix in PICKLED:
        return load_pickled_tensors(path), {}
    tensors, metadata = load_tensors(path)
    try:
        return tensors, check_values(json.loads(metadata.get(PREPROCESSING, "{}")))
    except (ValueError, RecursionError) as error:  # of JSON; a SettingError is a ValueError, too
        raise FileFormatError(f"{path}: what it says of its images is damaged: {error}") from None


def load_weights_(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Load a whole state dict, in place.

    Args:
        model: The network.
        tensors: Name -> tensor.
        where: The file that they come from, for the message.

    Raises:
        ModelError: A tensor is missing, has another shape, or belongs to no parameter. The message names the first
            five.
    """
    own = model.state_dict()
    misshapen, missing = [], []
    for name, value in own.items():
        if name not in tensors:
            missing.append(f"lacks {name}")
        elif tensors[name].shape != value.shape:
            shapes = f"{tuple(tensors[name].shape)}, the network's is {tuple(value.shape)}"
            misshapen.append(f"has {name} of shape {shapes}")
    unknown = [f"has {name}, which the network does not" for name in tensors if name not in own]
    problems = misshapen + missing + unknown
    if problems:
        raise ModelError(f"{where}: does not fit {type(model).__name__}: it {'; '.join(problems[:5])}")
    model.load_state_dict(tensors)


def find_head(model: nn.Module) -> list[str]:
    """The tensors of the classifier, or of several, as timm names it."""
    layers = read_configuration(model).get("classifier") or ()
    if isinstance(layers, str):
        layers = (layers,)
    prefixes = tuple(f"{layer}." for layer in layers)
    return [key for key in model.state_dict() if key.startswith(prefixes)]


def replace_other_head_(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    """The weights with a new classifier, which the model gets, too, where the file has one for other classes."""
    own = model.state_dict()
    head = [key for key in find_head(model) if key in tensors]
    if all(tensors[key].shape == own[key].shape for key in head):
        return tensors
    if not dist.is_available() or not dist.is_initialized() or dist.get_rank() == 0:  # once for all processes
        logger.warning("%s: has a classifier for other classes; %s are made anew", where, ", ".join(head))
    start_new_head_(model)
    return tensors | {key: own[key] for key in head}


def start_new_head_(model: nn.Module) -> None:
    """Make the weights of a classifier small that stands on pre-trained features.

    With the weights that a network gets for its own pre-training (up to 0.3 in timm's EfficientNets of ten classes) the
    first steps are as large as the classifier is wrong, and destroy the features.  An epoch on Imagenette left 75 % of
    the held-out photos right with `tf_efficientnet_lite0`, and leaves 89 % with small weights.
    N(0, 0.01^2) is torchvision's choice for MobileNets.
    """
    for key in find_head(model):
        parameter = model.get_parameter(key)
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.01)
        else:
            nn.init.zeros_(parameter)
