"""Six networks of the papers, registered with timm under their names."""

import inspect
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch.nn.functional as F
from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

from ..errors import ModelError

OWN_MODELS = ("lenet_300_100", "lenet5_caffe", "vgg_like", "resnet18_small", "resnet20", "resnet56")
"""Names of the papers' networks."""
Shortcut = Literal["pad", "projection"]
"""What stands beside a block whose output has more channels than its input."""


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


class CifarBlock(nn.Module):
    """Two 3x3 convolutions with batch normalization beside a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, in_chans: int, out_chans: int, stride: int, shortcut: Shortcut) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, out_chans, 3, stride, padding=1, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(out_chans), nn.ReLU()
        self.conv2 = nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False)
        self.bn2, self.act2 = nn.BatchNorm2d(out_chans), nn.ReLU()
        self.shortcut = _make_shortcut(in_chans, out_chans, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        output: Tensor = self.act2(inner + self.shortcut(x))
        return output


class PadShortcut(nn.Module):
    """Every second pixel, and zeros for the channels that the input lacks: option A of He et al. (2016)."""

    def __init__(self, added: int) -> None:
        super().__init__()
        self.added = added

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.added))


def _make_shortcut(in_chans: int, out_chans: int, stride: int, shortcut: Shortcut) -> nn.Module:
    if in_chans == out_chans:
        return nn.Identity()
    if shortcut == "pad":
        return PadShortcut(out_chans - in_chans)
    projection = nn.Conv2d(in_chans, out_chans, 1, stride, bias=False)
    return nn.Sequential(projection, nn.BatchNorm2d(out_chans))


class CifarResNet(nn.Module):
    """A residual network for 32-pixel images (He et al. 2016, section 4.2): 6n + 2 layers, 16, 32 and 64 channels.

    Shortcuts between stages are those of the paper (`pad`, option A), or convolutions (`projection`, option B), which
    Torch-Pruning's published ResNet-56 has.
    """

    def __init__(
        self, blocks: int, num_classes: int = 10, in_chans: int = 3, width: int = 16, shortcut: Shortcut = "pad"
    ) -> None:
        super().__init__()
        if shortcut not in get_args(Shortcut):
            raise ModelError(f"shortcut = {shortcut!r}: it is one of {', '.join(get_args(Shortcut))}")
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1, self.act1 = nn.BatchNorm2d(width), nn.ReLU()
        channels = width
        stages = []
        for stage_width, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            stage = [CifarBlock(channels, stage_width, stride, shortcut)]
            stage += [CifarBlock(stage_width, stage_width, 1, shortcut) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(*stage))
            channels = stage_width
        self.layer1, self.layer2, self.layer3 = stages
        self.num_classes, self.num_features = num_classes, channels
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.default_cfg = self.pretrained_cfg = _configuration(32, 3, "fc") | {"first_conv": "conv1"}

    def get_classifier(self) -> nn.Linear:
        """The last layer."""
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


# timm calls entry points with `pretrained` and with arguments of its own beside those of the user.


def _drop_timms_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    internal = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
    return {name: value for name, value in arguments.items() if name not in internal}


def _construct(kind: type[nn.Module], timm_arguments: dict[str, Any], **fixed: int) -> nn.Module:
    """Build a network from what timm hands over, and what is `fixed` by its name."""
    arguments = _drop_timms_arguments(timm_arguments)
    free = [name for name in inspect.signature(kind).parameters if name not in fixed]
    unknown = set(arguments) - set(free)
    if unknown:
        raise ModelError(f"{kind.__name__} has no argument {', '.join(sorted(unknown))}; it takes {', '.join(free)}")
    return kind(**arguments, **fixed)


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


@register_model
def resnet20(pretrained: bool = False, **arguments: Any) -> nn.Module:  # noqa: D103
    return _construct(CifarResNet, arguments, blocks=3)


@register_model
def resnet56(pretrained: bool = False, **arguments: Any) -> nn.Module:  # noqa: D103
    return _construct(CifarResNet, arguments, blocks=9)
