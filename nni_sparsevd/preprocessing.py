"""How an image becomes the input of a network, and what its classes are called, under timm's names.

A network carries this in `pretrained_cfg`, as networks of timm do: files, exports and `timm.data.resolve_data_config`
take it from there.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from .errors import SettingError

NUMBERS = ("mean", "std")
"""One number for each channel, of pixels in [0, 1]."""
TEXTS = {
    "interpolation": ("bicubic", "bilinear", "lanczos", "box", "hamming", "nearest"),
    "crop_mode": ("center", "squash", "border"),
}
"""The words that timm has for each."""
KEYS = ("input_size", "fixed_input_size", *TEXTS, "crop_pct", *NUMBERS, "label_names")
"""The keys of timm's `pretrained_cfg` that say how to make an input, and what the classes are called."""
ALLOWED = {
    "input_size": "the list [channels, height, width]",
    "fixed_input_size": "true or false",
    **{key: f"one of the words {', '.join(words)}" for key, words in TEXTS.items()},
    "crop_pct": "a number above 0",
    "mean": "a list of numbers",
    "std": "a list of numbers above 0",
    "label_names": "a list of words",
}
"""What each of `KEYS` takes, in words."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of a network: resized, cropped in the middle, normalized.

    Attributes:
        input_size: (channels, height, width) of the input.
        mean: What is subtracted from each channel, of pixels in [0, 1].
        std: What each channel is divided by then.
        interpolation: How the image is resized, by timm's name: bicubic, bilinear, ...
        crop_pct: Side of the crop, as a part of the shorter side of the image.
        crop_mode: How the crop is taken, by timm's name: center, squash or border.
        label_names: Names of the classes in their order; empty where they have none.
    """

    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: str = "center"
    label_names: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All fields, with lists for tuples, as JSON has them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @staticmethod
    def from_values(values: Mapping[str, Any]) -> "Preprocessing":
        """Make it from values under timm's names; keys that are missing take their defaults.

        Raises:
            SettingError: The size of the input, the mean or the deviation is missing, a value is not allowed, or there
                are not as many means or deviations as channels.
        """
        checked = check_values(values)
        missing = [key for key in ("input_size", "mean", "std") if key not in checked]
        if missing:
            raise SettingError(f"preprocessing lacks {', '.join(missing)}")
        channels = checked["input_size"][0]
        for key in NUMBERS:
            count = len(checked[key])
            if count not in (1, channels):  # a single number is for all channels
                raise SettingError(f"preprocessing: {key} has {count} numbers for {channels} channels")
        known: dict[str, Any] = {}
        for key, value in checked.items():
            if key in Preprocessing.__dataclass_fields__:
                known[key] = tuple(value) if isinstance(value, list) else value
        return Preprocessing(**known)


@dataclass(frozen=True)
class Requirements:
    """What a network asks of its images before it is built; what it leaves open is found out from the data.

    Attributes:
        image_size: Side of the only images that it takes.
        usual_size: Side of the images that it was designed for.
        in_chans: Channels of its images.
        trained: How the images of its pre-training were made, under timm's names; empty for a network that starts from
            nothing.
    """

    image_size: int | None = None
    usual_size: int | None = None
    in_chans: int | None = None
    trained: Mapping[str, Any] = field(default_factory=dict)


def read_values(model: nn.Module) -> dict[str, Any]:
    """Read what a network says of its inputs and classes.

    Args:
        model: Any network.

    Returns:
        The `KEYS` that its `pretrained_cfg` has; none for a network without.
    """
    return select_values(read_configuration(model))


def read_configuration(model: nn.Module) -> dict[str, Any]:
    """Read timm's configuration of a network, its `pretrained_cfg`; empty for a network without."""
    return getattr(model, "pretrained_cfg", None) or {}


def select_values(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Select the `KEYS` that a configuration of timm has, with lists for tuples."""
    values = {}
    for key in KEYS:
        value = configuration.get(key)
        if value is not None:
            values[key] = list(value) if isinstance(value, tuple) else value
    return values


def set_values_(model: nn.Module, values: Mapping[str, Any]) -> None:
    """Tell a network how its inputs are made, in place: `pretrained_cfg` says so from then on.

    Args:
        model: Any network.
        values: Values under timm's names.
    """
    entries = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    configuration = {**read_configuration(model), **entries}
    if entries.get("label_names"):
        configuration["num_classes"] = len(entries["label_names"])
    model.pretrained_cfg = configuration  # type: ignore[assignment]
    # timm has the same under an older name, too.
    model.default_cfg = configuration  # type: ignore[assignment]


def check_values(values: object) -> dict[str, Any]:
    """Check values under timm's names, as a user or a file gives them.

    Args:
        values: A mapping from some of `KEYS` to numbers, texts and lists of these.

    Returns:
        The same values, with lists for tuples.

    Raises:
        SettingError: A key is not timm's, or a value is of a wrong type or out of range. The message names the key.
    """
    if not isinstance(values, Mapping):
        raise SettingError(f"preprocessing: give a table of {', '.join(KEYS)}, found {type(values).__name__}")
    unknown = sorted(str(key) for key in set(values) - set(KEYS))
    if unknown:
        raise SettingError(f"preprocessing has no {', '.join(unknown)}; it has {', '.join(KEYS)}")
    checked = {}
    for key, value in values.items():
        checked[key] = list(value) if isinstance(value, tuple) else value
        if not _is_well_formed(key, checked[key]):
            raise SettingError(
                f"preprocessing: {key} cannot be {value!r}, a {type(value).__name__}; give {ALLOWED[key]}"
            )
    return checked


def _is_well_formed(key: str, value: Any) -> bool:
    if key == "fixed_input_size":
        return isinstance(value, bool)
    if key in TEXTS:
        return value in TEXTS[key]
    if key == "crop_pct":
        return _is_number(value) and value > 0
    if not isinstance(value, list):
        return False
    if key == "label_names":
        return all(isinstance(name, str) for name in value)
    if key == "input_size":
        return len(value) == 3 and all(type(size) is int and size > 0 for size in value)
    return all(_is_number(number) and (key == "mean" or number > 0) for number in value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
