"""Repairs of NNI's table of what can be pruned in a layer."""

from nni.compression.base.setting import PruningSetting

from ...patching import Patch
from .repairs import repair

LIKE = {"Conv2dSame": "Conv2d", "BatchNormAct2d": "BatchNorm2d"}
"""Class of timm -> the class of PyTorch whose weight and bias it has, and uses in the same way."""


@repair(since="NNI 3.0")
def prunable_layers(patch: Patch) -> None:
    """NNI's table of the layers that can be pruned goes by class name, and has none of timm's subclasses of PyTorch's
    layers: a network with "same" padding was refused. They are entered with the settings of their base.
    """
    for name, base in LIKE.items():
        if name not in PruningSetting.registry:
            patch.set(PruningSetting.registry, name, PruningSetting.registry[base])
