"""Networks in files: saved and loaded without pickle, packed near their entropy, on the Hugging Face hub."""

from .hub import PREFIX, WEIGHTS, fetch_weights, push, save_folder
from .networks import describe_file, load, save
from .packing import Coding
from .structure import timm_structure

__all__ = [
    "PREFIX",
    "WEIGHTS",
    "Coding",
    "describe_file",
    "fetch_weights",
    "load",
    "push",
    "save",
    "save_folder",
    "timm_structure",
]
