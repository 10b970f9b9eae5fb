"""Settings of the data: which images, how they become inputs, and how they are augmented."""

from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from ..settings import Fraction, Settings


class DataSettings(Settings):
    """Which data, read through `timm.data`."""

    name: str | None = None
    """digits (embedded), a timm data set such as torch/mnist or hfds/NAME, or empty for a folder or tar of images. Not
    set: a folder or tar where `train` is set, else digits."""
    train: Path | None = None
    """Root of the training data: a folder with a folder for each class, a tar of it, or a folder that holds train/ and
    val/ (or validation/, test/)."""
    test: Path | None = None
    """Root of the test data; not set: the root of the training data, of which the test split is taken."""
    train_split: str = "train"
    """Split to train on, of a data set that has splits by name."""
    test_split: str = "validation"
    """Split to test on, of a data set that has splits by name."""
    skip_bad: bool = False
    """Go on without photos that cannot be decoded, and count them in the report; otherwise they are an error that lists
    all of them."""
    holdout: Annotated[float, Gt(0), Lt(1)] = 0.1
    """Part of the training data kept from training, to watch the training and to choose the threshold."""
    image_size: PositiveInt | None = None
    """Side of the square input; not set: that of the pre-training, the only one that the network takes, or that of the
    images."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel, of pixels in [0, 1]; not set: that of the pre-training, or else of the training images."""
    std: tuple[PositiveFloat, ...] | None = None
    """Standard deviation of each channel, likewise."""
    interpolation: Literal["bicubic", "bilinear", "lanczos", "box", "hamming", "nearest"] | None = None
    """How images are resized; not set: as in the pre-training, or else bicubic."""
    crop_pct: Annotated[float, Gt(0), Le(1)] | None = None
    """Side of the middle crop, as a part of the shorter side of the image; not set: as in the pre-training, else 1."""
    augment: Literal["none", "crop_flip", "crop", "timm"] = "none"
    """crop: random crops after padding, with horizontal flips or without; timm: random resized crops and all that the
    next six settings say."""
    margin: PositiveInt | None = None
    """Largest shift of a random crop, in pixels; not set: an eighth of the side."""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.08, 1.0)
    """With augment=timm: area of the random resized crop, as a part of the image, from and to."""
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    """With augment=timm: width of that crop to its height, from and to."""
    hflip: Annotated[float, Ge(0), Le(1)] = 0.5
    """With augment=timm: probability of a horizontal flip."""
    vflip: Annotated[float, Ge(0), Le(1)] = 0.0
    """With augment=timm: probability of a vertical flip."""
    color_jitter: NonNegativeFloat = 0.4
    """With augment=timm: how far brightness, contrast and saturation move; timm leaves it out where `aa` is set."""
    aa: str | None = None
    """With augment=timm: RandAugment, AutoAugment or AugMix in timm's words, e.g. rand-m9-mstd0.5."""
    re_prob: Annotated[float, Ge(0), Le(1)] = 0.0
    """Probability of erasing a random rectangle of an image."""
    re_mode: Literal["const", "rand", "pixel"] = "pixel"
    """What the erased rectangle holds: zeros, one random color, or noise in every pixel."""
    mixup: NonNegativeFloat = 0.0
    """Alpha of mixup: pairs of images are blended, and their labels."""
    cutmix: NonNegativeFloat = 0.0
    """Alpha of cutmix: a rectangle of one image is put into another one."""
    smoothing: Fraction = 0.0
    """Label smoothing: the part of a label that is shared out among all classes."""
    batch_size: PositiveInt = 100
    """Images per step and process."""
    limit: PositiveInt | None = None
    """Use only this many training images."""
    random_labels: bool = False
    """Replace the labels of training and held-out images by labels drawn once at random (by `seed`): there is then
    nothing to learn."""
    workers: NonNegativeInt | None = None
    """Loader processes; 0 loads in the training process. Not set: one for each core where there are many photos."""

    @property
    def resolved_name(self) -> str:
        """The name, where a folder has the empty one."""
        if self.name is not None:
            return self.name
        return "digits" if self.train is None else ""

    def resolve_paths(self, folder: Path) -> "DataSettings":
        """These settings with relative paths taken from `folder`."""
        train = None if self.train is None else folder / self.train
        test = None if self.test is None else folder / self.test
        return self.model_copy(update={"train": train, "test": test})

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> "DataSettings":
        if self.resolved_name == "digits" and (self.train or self.test):
            key = "train" if self.train else "test"
            raise ValueError(
                f"data.{key} = {self.train or self.test} is not used with the embedded digits: leave data.name out for "
                "a folder or tar of images, and set data.train"
            )
        if (self.mixup or self.cutmix) and self.batch_size % 2:
            raise ValueError(f"data.mixup and data.cutmix take pairs: data.batch_size = {self.batch_size} is odd")
        if self.augment != "timm":
            unused = [key for key in AUGMENTATION if key in self.model_fields_set and self._differs(key)]
            if unused:
                raise ValueError(f"data.{unused[0]} counts only with data.augment = 'timm', found {self.augment!r}")
        if self.margin is not None and self.augment not in ("crop", "crop_flip"):
            raise ValueError(
                f"data.margin counts only with data.augment = 'crop' or 'crop_flip', found {self.augment!r}"
            )
        return self

    def _differs(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)


AUGMENTATION = ("scale", "ratio", "hflip", "vflip", "color_jitter", "aa")
"""Settings of timm's augmentation of single photos."""
