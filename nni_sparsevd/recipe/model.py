"""Settings of networks: the one that is compressed, and the one that teaches it."""

from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Le
from pydantic import PositiveFloat

from ..settings import Argument, Settings


class ModelSettings(Settings):
    """Which network, and where its weights come from."""

    name: str = "lenet_300_100"
    """Any timm name, or lenet_300_100, lenet5_caffe, vgg_like, resnet18_small, resnet20, resnet56 (see
    `list-models`)."""
    arguments: dict[str, Argument] = {}  # noqa: RUF012  pydantic copies the default
    """Further arguments of `timm.create_model`."""
    pretrained: bool = False
    """Start from timm's pre-trained weights; a `checkpoint` takes their place."""
    checkpoint: Path | None = None
    """Start from this file of weights: .safetensors, or .pth of tensors (nothing else is unpickled). A classifier for
    other classes is made anew."""

    def resolve_paths(self, folder: Path) -> "ModelSettings":
        """These settings with a relative path of the checkpoint taken from `folder`."""
        checkpoint = None if self.checkpoint is None else folder / self.checkpoint
        return self.model_copy(update={"checkpoint": checkpoint})


class TeacherSettings(ModelSettings):
    """A network whose outputs the training learns to give, beside the labels (distillation)."""

    name: str = ""
    """A network that teaches all stages; empty: the run's dense network teaches the stages after the dense one."""
    weight: Annotated[float, Ge(0), Le(1)] = 0.0
    """The teacher's part of the loss, the labels have the rest; 0 trains on the labels alone."""
    temperature: PositiveFloat = 2.0
    """What the logits of both networks are divided by; above 1 the teacher also says which wrong classes are near."""
