"""The classes of photos, by a network that says itself how its inputs are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .data import decode_photo, make_transform
from .errors import DataError, SettingError
from .loading import load
from .preprocessing import Preprocessing, read_values
from .results import FILES, find_network_folder


@dataclass(frozen=True)
class Prediction:
    """The most probable class of a photo."""

    photo: Path
    label: str
    """Name of the class, or its number where the classes have no names."""
    probability: float

    def __str__(self) -> str:
        return f"{self.photo}: {self.label} {100 * self.probability:.1f} %"


def predict_photos(source: Path, photos: Sequence[Path], *, level: float | None = None) -> list[Prediction]:
    """Classify photos, prepared as the network was trained to see them.

    Args:
        source: The folder of a finished run, whose small network is used, or anything that `load` opens.
        photos: Files.
        level: With a run folder, the level of the budget whose network is used; None: the network that the run has
            chosen.

    Returns:
        The most probable class of each photo.

    Raises:
        DataError: A photo is missing or cannot be decoded.
        SettingError: The network does not say how its inputs are made, or names fewer or more classes than it has; or
            the run has no such level.
        FileFormatError: The run is not finished, or a file of it is damaged.
    """
    is_run_folder = (source / "recipe.toml").exists()
    if level is not None and not is_run_folder:
        raise SettingError(f"--level={level:g}: {source} is no run folder")
    network = load(find_network_folder(source, level) / FILES["shrunk"] if is_run_folder else source)
    try:
        preprocessing = Preprocessing.from_values(read_values(network))
    except SettingError as error:
        raise SettingError(f"{source}: does not say how its inputs are made: {error}") from None
    transform = make_transform(preprocessing)
    channels = preprocessing.input_size[0]
    mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in (preprocessing.mean, preprocessing.std))
    names = preprocessing.label_names
    # An exported file has no parameters: its inputs are taken for float32.
    dtype = next((value.dtype for value in network.parameters() if value.is_floating_point()), torch.float32)
    predictions = []
    for path in photos:
        if not path.is_file():
            raise DataError(f"{path}: no such photo")
        try:
            photo = decode_photo(path.read_bytes()).convert("L" if channels == 1 else "RGB")
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        with torch.inference_mode():
            logits = network(((transform(photo).float() / 255 - mean) / std)[None].to(dtype))
        if names and len(names) != logits.shape[1]:
            raise SettingError(f"{source}: label_names has {len(names)} names for {logits.shape[1]} classes")
        probability, index = logits.float().softmax(1)[0].max(0)
        predictions.append(Prediction(path, names[index] if names else str(int(index)), float(probability)))
    return predictions
