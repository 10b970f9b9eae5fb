"""Networks by name: every network of timm, and four networks of the papers, registered with timm."""

import difflib
import inspect
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import timm
from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from .errors import FileFormatError, ModelError, SettingError, describe_error
from .files import load_pickled_tensors, load_tensors
from .preprocessing import Requirements, check_values, select_values
from .recipe import ModelSettings
from .settings import Argument

logger = logging.getLogger(__name__)
PREPROCESSING = "nni_sparsevd.preprocessing"
"""Metadata key of a file of weights: how the images were made that they were trained with, a JSON object."""
PICKLED = (".pth", ".pt", ".bin", ".tar")
"""Suffixes of files of `torch.save`."""
OWN_MODELS = ("lenet_300_100", "lenet5_caffe", "vgg_like", "resnet18_small")
"""Names of the papers' networks."""


def _configuration(size: int, channels: int, classifier: str) -> dict[str, Any]:
    """What timm remembers about a network: input and classifier; mean and deviation belong to the data."""
    return {"input_size": (channels, size, size), "num_classes": 10, "classifier": classifier, "pool_size": None}


class LeNet300100(nn.Module):
    """784-300-100-10 with ReLU (LeCun et al. 1998); `hidden` sets other widths, 500 and 300 in later papers."""

    def __init__(
        self, num_classes: int = 10, in_chans: int = 1, img_size: int = 28, hidden: Sequence[int] = (300, 100)
    ) -> None:
        super().__init__()
        first, second = hidden
        self.num_classes, self.num_features = num_classes, second
        self.fc1 = nn.Linear(in_chans * img_size**2, first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, num_classes)
        self.act1, self.act2 = nn.ReLU(), nn.ReLU()
        self.default_cfg = self.pretrained_cfg = _configuration(28, 1, "fc3")

    def get_classifier(self) -> nn.Linear:
        """The last layer."""
        return self.fc3

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.fc1(x.flatten(1)))
        return self.fc3(self.act2(self.fc2(x)))  # type: ignore[no-any-return]


class LeNet5Caffe(nn.Module):
    """20-50-500-10: LeNet-5 as Caffe has it, with max pooling and one ReLU (Jia et al. 2014); 431,080 parameters."""

    def __init__(self, num_classes: int = 10, in_chans: int = 1, img_size: int = 28) -> None:
        super().__init__()
        side = ((img_size - 4) // 2 - 4) // 2
        if side < 1:
            raise ModelError(f"lenet5_caffe needs images of at least 16 pixels a side, found {img_size}")
        self.num_classes, self.num_features = num_classes, 500
        self.conv1, self.pool1 = nn.Conv2d(in_chans, 20, 5), nn.MaxPool2d(2)
        self.conv2, self.pool2 = nn.Conv2d(20, 50, 5), nn.MaxPool2d(2)
        self.fc1, self.act = nn.Linear(50 * side**2, 500), nn.ReLU()
        self.fc2 = nn.Linear(500, num_classes)
        self.default_cfg = self.pretrained_cfg = _configuration(28, 1, "fc2")

    def get_classifier(self) -> nn.Linear:
        """The last layer."""
        return self.fc2

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool2(self.conv2(self.pool1(self.conv1(x))))
        return self.fc2(self.act(self.fc1(x.flatten(1))))  # type: ignore[no-any-return]


class VGGLike(nn.Module):
    """13 convolutions with batch normalization and one hidden dense layer (Zagoruyko 2015), for 32-pixel images."""

    LAYOUT = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))

    def __init__(self, num_classes: int = 10, in_chans: int = 3, width: float = 1.0, drop_rate: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_chans
        for base, repeats in self.LAYOUT:
            for _ in range(repeats):
                layers += [nn.Conv2d(channels, int(base * width), 3, padding=1), nn.BatchNorm2d(int(base * width))]
                layers += [nn.ReLU(), nn.Dropout(drop_rate)]
                channels = int(base * width)
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.num_classes, self.num_features = num_classes, int(512 * width)
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden = nn.Linear(channels, self.num_features)
        self.norm, self.act = nn.BatchNorm1d(self.num_features), nn.ReLU()
        self.head = nn.Linear(self.num_features, num_classes)
        self.default_cfg = self.pretrained_cfg = _configuration(32, 3, "head")

    def get_classifier(self) -> nn.Linear:
        """The last layer."""
        return self.head

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.features(x)).flatten(1)
        return self.head(self.act(self.norm(self.hidden(x))))  # type: ignore[no-any-return]


# timm calls entry points with `pretrained` and with arguments of its own beside those of the user.


def _drop_timms_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    internal = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    return {name: value for name, value in arguments.items() if name not in internal}


def _construct(kind: type[nn.Module], timm_arguments: dict[str, Any]) -> nn.Module:
    arguments = _drop_timms_arguments(timm_arguments)
    unknown = set(arguments) - set(inspect.signature(kind).parameters)
    if unknown:
        known = ", ".join(inspect.signature(kind).parameters)
        raise ModelError(f"{kind.__name__} has no argument {', '.join(sorted(unknown))}; it takes {known}")
    return kind(**arguments)


@register_model
def lenet_300_100(pretrained: bool = False, **arguments: Any) -> nn.Module:  # noqa: D103
    return _construct(LeNet300100, arguments)


@register_model
def lenet5_caffe(pretrained: bool = False, **arguments: Any) -> nn.Module:  # noqa: D103
    return _construct(LeNet5Caffe, arguments)


@register_model
def vgg_like(pretrained: bool = False, **arguments: Any) -> nn.Module:  # noqa: D103
    return _construct(VGGLike, arguments)


@register_model
def resnet18_small(pretrained: bool = False, **arguments: Any) -> nn.Module:
    """Build timm's ResNet-18 with a stem for small images: a 3x3 convolution of stride 1, and no pooling."""
    model: Any = ResNet(BasicBlock, (2, 2, 2, 2), **{"num_classes": 10, **_drop_timms_arguments(arguments)})  # type: ignore[arg-type]
    stem = model.conv1
    model.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    model.default_cfg = model.pretrained_cfg = _configuration(32, 3, "fc") | {"first_conv": "conv1"}
    return cast(nn.Module, model)


def list_models(pattern: str = "*") -> list[str]:
    """List the names that match a shell pattern, the papers' networks first."""
    names = timm.list_models(pattern)
    own = [name for name in OWN_MODELS if name in names]
    return own + [name for name in names if name not in OWN_MODELS]


def build_model(name: str, arguments: dict[str, Argument], pretrained: bool = False) -> nn.Module:
    """Build a network by its name; `read_origin` reads name and arguments from it later.

    Args:
        name: A name that timm knows, the papers' networks included.
        arguments: Arguments of the network's constructor.
        pretrained: Load timm's pre-trained weights.

    Returns:
        The network.

    Raises:
        ModelError: timm does not know the name, the network does not take the arguments, or the weights cannot be
            loaded.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "`nni-sparsevd list-models` lists them"
        raise ModelError(f"model.name: no network is named {name!r}; {hint}")
    try:
        model: nn.Module = timm.create_model(name, pretrained=pretrained, **cast(dict[str, Any], arguments))
    except ModelError:
        raise
    except Exception as error:  # timm, the network's constructor, or the hub
        what = "weights cannot be loaded" if pretrained else "cannot be built"
        raise ModelError(f"{name} {what} with {arguments}: {describe_error(error)}") from error
    model.sparsevd_origin = {"name": name, "arguments": arguments}  # type: ignore[assignment]
    return model


def read_origin(model: nn.Module) -> dict[str, Any]:
    """Read how a network was built: {"name", "arguments"}, {"name"}, or {} where it is not known."""
    origin = getattr(model, "sparsevd_origin", None)
    if origin is not None:
        return dict(origin)
    architecture = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    return {"name": architecture} if architecture else {}


def resolve_origin(
    model: nn.Module, name: str | None, arguments: dict[str, Argument] | None
) -> tuple[str | None, dict[str, Argument]]:
    """Find out how to build a network again.

    Args:
        model: The network.
        name: Its name; None: the name that it was built by.
        arguments: Its arguments; None: the arguments that it was built with.

    Returns:
        The name, or None where it is unknown, and the arguments.
    """
    known = read_origin(model)
    return name or known.get("name"), known.get("arguments", {}) if arguments is None else arguments


def create_model(settings: ModelSettings, num_classes: int, in_chans: int, image_size: int) -> nn.Module:
    """Build the network of a recipe for its data.

    Args:
        settings: Which network, and where its weights come from.
        num_classes: Classes of the data.
        in_chans: Channels of the images.
        image_size: Side of the images; only networks that are built for one size are told.

    Returns:
        The network.

    Raises:
        ModelError: The network cannot be built, or the weights of the checkpoint do not fit it.
        FileFormatError: The checkpoint cannot be read.
    """
    arguments: dict[str, Argument] = {"num_classes": num_classes, "in_chans": in_chans}
    takes_any_size = {"lenet_300_100", "lenet5_caffe"}  # timm cannot know that their `img_size` is free
    if settings.name in takes_any_size or _takes_image_size(settings.name):
        arguments["img_size"] = image_size
    # A checkpoint takes the place of timm's weights: they are not downloaded to be overwritten.
    downloads = settings.pretrained and settings.checkpoint is None
    model = build_model(settings.name, arguments | settings.arguments, downloads)
    if downloads and model.pretrained_cfg["num_classes"] != num_classes:  # type: ignore[index]
        _start_new_head_(model)  # timm has left out the classifier of other classes
    if settings.checkpoint is not None:
        tensors, _ = read_weights(settings.checkpoint)
        load_weights_(model, _replace_other_head_(model, tensors, settings.checkpoint), settings.checkpoint)
    return model


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
    timms = timm.get_pretrained_cfg(settings.name) if timm.is_model(settings.name) else None
    if timms is None or settings.name in OWN_MODELS:
        configuration: dict[str, Any] = {}
    else:
        configuration = select_values(timms.to_dict())
    size = configuration.get("input_size", (None, None, None))[-1]
    own_size = settings.arguments.get("img_size", size if configuration.get("fixed_input_size") else None)
    in_chans = settings.arguments.get("in_chans")
    trained: dict[str, Any] = {}
    if settings.pretrained or settings.checkpoint is not None:
        trained = {key: value for key, value in configuration.items() if key != "label_names"}
    if settings.checkpoint is not None:
        tensors, preprocessing = read_weights(settings.checkpoint)
        trained |= preprocessing
        stem = None if timms is None else tensors.get(f"{timms.first_conv}.weight")
        if in_chans is None and stem is not None:
            in_chans = stem.shape[1]
    if in_chans is None and trained:
        in_chans = trained["input_size"][0]
    return Requirements(
        image_size=own_size if isinstance(own_size, int) else None,
        usual_size=size,
        in_chans=in_chans if isinstance(in_chans, int) else None,
        trained=trained,
    )


def check_checkpoint(settings: ModelSettings, image_size: int | None, requirements: Requirements) -> None:
    """Refuse a checkpoint of another network, before anything costly is done; nothing without a checkpoint.

    Args:
        settings: Which network, and the checkpoint.
        image_size: Side of the images, where it is known.
        requirements: From `find_requirements`, which has read the checkpoint for them.

    Raises:
        ModelError: The network cannot be built, or the weights are not its own.
        FileFormatError: The checkpoint cannot be read.
    """
    if settings.checkpoint is None:
        return
    tensors, _ = read_weights(settings.checkpoint)
    # Sizes that only the data tell are left out of the comparison: here the names count, and most of the shapes.
    size = image_size or requirements.image_size or requirements.usual_size or 32
    untouched = settings.model_copy(update={"checkpoint": None, "pretrained": False})
    model = create_model(untouched, 2, requirements.in_chans or 3, size)
    own = model.state_dict()
    fitting = dict(tensors)
    for name in set(_find_head(model)) & set(tensors):
        fitting[name] = own[name]
    if settings.name in OWN_MODELS:
        # How many inputs their layers have is known when the images are.
        for name in set(own) & set(tensors):
            if tensors[name].shape[:1] == own[name].shape[:1]:
                fitting[name] = own[name]
    load_weights_(model, fitting, settings.checkpoint)


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
    except (json.JSONDecodeError, SettingError) as error:
        raise FileFormatError(f"{path}: what it says of its images is damaged: {error}") from None


def _find_head(model: nn.Module) -> list[str]:
    """The tensors of the classifier, or of several, as timm names it."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    heads = (named,) if isinstance(named, str) else tuple(named)
    return [key for key in model.state_dict() if key.startswith(tuple(f"{head}." for head in heads))]


def _replace_other_head_(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> dict[str, Tensor]:
    """The weights with a new classifier, which the model gets, too, where the file has one for other classes."""
    own = model.state_dict()
    head = [key for key in _find_head(model) if key in tensors]
    if all(tensors[key].shape == own[key].shape for key in head):
        return tensors
    logger.warning("%s: has a classifier for other classes; %s are made anew", where, ", ".join(head))
    _start_new_head_(model)
    return tensors | {key: own[key] for key in head}


def _start_new_head_(model: nn.Module) -> None:
    """Make the weights of a classifier small that stands on pre-trained features.

    With the weights that a network gets for its own pre-training (up to 0.3 in timm's EfficientNets of ten classes) the
    first steps are as large as the classifier is wrong, and destroy the features: `tf_efficientnet_lite0` began at a
    loss of 5 and had 76 % of the photos right after an epoch.  N(0, 0.01^2) is torchvision's choice for MobileNets.
    """
    for key in _find_head(model):
        parameter = model.get_parameter(key)
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.01)
        else:
            nn.init.zeros_(parameter)


def find_image_size(settings: ModelSettings) -> int | None:
    """Find the side of the images that a network is built for; None where it takes any size."""
    if not _takes_image_size(settings.name):
        return None
    entry = timm.get_pretrained_cfg(settings.name)
    return int(entry.input_size[-1]) if entry is not None else None


def _takes_image_size(name: str) -> bool:
    """Whether timm says that the network is built for one image size."""
    if not timm.is_model(name):
        return False
    entry = timm.get_pretrained_cfg(name)
    return bool(entry is not None and entry.fixed_input_size)


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
