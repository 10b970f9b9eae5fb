"""Networks by name: all of timm, and six of the papers; their weights, and what they ask of images."""

from .building import build_model, list_models, read_origin, resolve_origin
from .creation import check_checkpoint, create_model
from .paper_networks import OWN_MODELS, LeNet5Caffe, LeNet300100, VGGLike
from .requirements import find_image_size, find_requirements
from .weights import PREPROCESSING, load_weights_, read_weights

__all__ = [
    "OWN_MODELS",
    "PREPROCESSING",
    "LeNet5Caffe",
    "LeNet300100",
    "VGGLike",
    "build_model",
    "check_checkpoint",
    "create_model",
    "find_image_size",
    "find_requirements",
    "list_models",
    "load_weights_",
    "read_origin",
    "read_weights",
    "resolve_origin",
]
