"""torchvision's networks: the smallest of each module, without trained weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

BOXES = ((4.0, 6.0, 40.0, 52.0), (10.0, 8.0, 30.0, 60.0), (0.0, 0.0, 63.0, 63.0))
"""Where the heads of a detector with proposals look: left, top, right, bottom, in pixels."""
OPTIONS: dict[str, Any] = {"weights": None}
DETECTOR: dict[str, Any] = {**OPTIONS, "weights_backbone": None, "num_classes": 5}
PIXELS = {"min_size": 64, "max_size": 64}
TWO_STAGES = {**DETECTOR, **PIXELS, "box_score_thresh": 0.0}
ONE_STAGE = {**DETECTOR, **PIXELS, "score_thresh": 0.0}
FIXED_SIZE = {**DETECTOR, "score_thresh": 0.0}


@dataclass(frozen=True)
class Entry:
    """One network of the library."""

    kind: str
    """What the network is for."""
    shapes: tuple[tuple[int, ...], ...]
    """The shapes of its inputs, each without the batch."""
    options: Mapping[str, Any] = field(default_factory=lambda: OPTIONS)
    """What it is made with."""
    batch: int = 2
    """How many samples the inputs hold."""
    runs_in_64: bool = True
    """Whether the network runs in float64: the code of some makes tensors in float32."""


def _image(side: int) -> tuple[tuple[int, ...], ...]:
    return ((3, side, side),)


def _clip(frames: int, side: int) -> tuple[tuple[int, ...], ...]:
    return ((3, frames, side, side),)


CLASSIFICATION = {
    "alexnet": Entry("classification", _image(64)),
    "convnext_tiny": Entry("classification", _image(64)),
    "densenet121": Entry("classification", _image(64)),
    "efficientnet_b0": Entry("classification", _image(64)),
    "efficientnet_v2_s": Entry("classification", _image(64)),
    "googlenet": Entry("classification", _image(64), {**OPTIONS, "init_weights": False, "aux_logits": False}),
    "inception_v3": Entry("classification", _image(96), {**OPTIONS, "init_weights": False, "aux_logits": False}),
    "maxvit_t": Entry("classification", _image(224), batch=1),
    "mnasnet0_5": Entry("classification", _image(64)),
    "mobilenet_v2": Entry("classification", _image(64)),
    "mobilenet_v3_small": Entry("classification", _image(64)),
    "mobilenet_v3_large": Entry("classification", _image(64)),
    "regnet_x_400mf": Entry("classification", _image(64)),
    "regnet_y_400mf": Entry("classification", _image(64)),
    "resnet18": Entry("classification", _image(64)),
    "resnet50": Entry("classification", _image(64)),
    "resnext50_32x4d": Entry("classification", _image(64)),
    "wide_resnet50_2": Entry("classification", _image(64)),
    "shufflenet_v2_x0_5": Entry("classification", _image(64)),
    "squeezenet1_1": Entry("classification", _image(64)),
    "swin_t": Entry("classification", _image(64)),
    "swin_v2_t": Entry("classification", _image(64)),
    "vgg11": Entry("classification", _image(64)),
    "vgg11_bn": Entry("classification", _image(64)),
    "vit_b_16": Entry("classification", _image(64), {**OPTIONS, "image_size": 64}),
}
SEGMENTATION = {
    "fcn_resnet50": Entry("segmentation", _image(64), DETECTOR),
    "deeplabv3_resnet50": Entry("segmentation", _image(64), DETECTOR),
    "deeplabv3_mobilenet_v3_large": Entry("segmentation", _image(64), DETECTOR),
    "lraspp_mobilenet_v3_large": Entry("segmentation", _image(64), DETECTOR),
}
DETECTION = {
    "fasterrcnn_resnet50_fpn": Entry("detection with boxes", _image(64), TWO_STAGES, 1),
    "fasterrcnn_resnet50_fpn_v2": Entry("detection with boxes", _image(64), TWO_STAGES, 1),
    "fasterrcnn_mobilenet_v3_large_fpn": Entry("detection with boxes", _image(64), TWO_STAGES, 1),
    "fasterrcnn_mobilenet_v3_large_320_fpn": Entry("detection with boxes", _image(64), TWO_STAGES, 1),
    "maskrcnn_resnet50_fpn": Entry("detection with boxes", _image(64), TWO_STAGES, 1),
    "keypointrcnn_resnet50_fpn": Entry("detection with boxes", _image(64), TWO_STAGES, 1),
    "retinanet_resnet50_fpn": Entry("detection with boxes", _image(64), ONE_STAGE, 1),
    "retinanet_resnet50_fpn_v2": Entry("detection with boxes", _image(64), ONE_STAGE, 1),
    "fcos_resnet50_fpn": Entry("detection with boxes", _image(64), ONE_STAGE, 1),
    "ssd300_vgg16": Entry("detection with boxes", _image(300), FIXED_SIZE, 1),
    "ssdlite320_mobilenet_v3_large": Entry("detection with boxes", _image(320), FIXED_SIZE, 1),
}
VIDEO = {
    "r3d_18": Entry("video", _clip(8, 32)),
    "mc3_18": Entry("video", _clip(8, 32)),
    "r2plus1d_18": Entry("video", _clip(8, 32)),
    "s3d": Entry("video", _clip(16, 224), batch=1),
    "mvit_v1_b": Entry("video", _clip(8, 64), batch=1),
    "mvit_v2_s": Entry("video", _clip(8, 64), batch=1),
    "swin3d_t": Entry("video", _clip(8, 64), batch=1),
}
OPTICAL_FLOW = {
    "raft_small": Entry("optical flow", ((3, 128, 128), (3, 128, 128)), batch=1, runs_in_64=False),
    "raft_large": Entry("optical flow", ((3, 128, 128), (3, 128, 128)), batch=1, runs_in_64=False),
}
ENTRIES = {**CLASSIFICATION, **SEGMENTATION, **DETECTION, **VIDEO, **OPTICAL_FLOW}


class DetectorParts(nn.Module):
    """What a detector of torchvision learns, without the sorting of boxes: its backbone and its heads.

    The way of the whole detector depends on the values of its inputs, as it drops boxes, so it cannot be traced.  The
    parts can, and what is cut from them is cut from the detector, which stands in `detector`.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector: Any = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.detector.backbone(images)
        levels = list(features.values()) if isinstance(features, dict) else [features]
        if hasattr(self.detector, "roi_heads"):
            scores, moves = self.detector.rpn.head(levels)
            return (*scores, *moves, *self._look_at_boxes(levels[0], images))
        outputs = self.detector.head(levels)
        return tuple(outputs.values())

    def _look_at_boxes(self, features: Tensor, images: Tensor) -> list[Tensor]:
        """What the second stage makes of a few fixed boxes of the first image, on the finest level."""
        import torchvision

        heads = self.detector.roi_heads
        scale = features.shape[-1] / images.shape[-1]
        boxes = torch.tensor([(0.0, *box) for box in BOXES], dtype=features.dtype, device=features.device)
        outputs = list(heads.box_predictor(heads.box_head(torchvision.ops.roi_align(features, boxes, 7, scale, 2))))
        for name in ("mask", "keypoint"):
            head, predictor = getattr(heads, f"{name}_head"), getattr(heads, f"{name}_predictor")
            if head is not None:
                outputs.append(predictor(head(torchvision.ops.roi_align(features, boxes, 14, scale, 2))))
        return outputs


def largest_box_difference(masked: nn.Module, small: nn.Module, images: Tensor) -> float:
    """How far the boxes and scores of two whole detectors are apart, as a part of the largest value of each kind.

    Args:
        masked: `DetectorParts`.
        small: The same, shrunk.
        images: Images, shape (batch, 3, side, side).

    Returns:
        The largest relative difference; infinite where they find other objects.
    """
    assert isinstance(masked, DetectorParts)
    assert isinstance(small, DetectorParts)
    with torch.no_grad():
        expected, computed = masked.detector(list(images)), small.detector(list(images))
    largest = 0.0
    for before, after in zip(expected, computed, strict=True):
        for name, value in before.items():
            if value.shape != after[name].shape:
                return float("inf")
            if value.numel():
                difference = (value.double() - after[name].double()).abs().max()
                largest = max(largest, float(difference / value.double().abs().max().clamp_min(1e-12)))
    return largest


def _make_small_mvit(name: str, frames: int, side: int) -> nn.Module:
    """A network of multiscale attention for small clips: its own blocks, with tables of positions for fewer tokens.

    Its tokens are counted in the constructor, and torchvision's builders make them for 16 frames of 224 pixels alone.
    At that size gradients of a batch in float64 take more than 9 GiB.
    """
    from torchvision.models import get_model
    from torchvision.models.video.mvit import MSBlockConfig, MultiscaleBlock, MViT

    # The builder gives the settings of the whole network to each block: they are taken down there.
    blocks: list[MSBlockConfig] = []
    variants: dict[str, Any] = {}

    def take_down(cnf: MSBlockConfig, **options: Any) -> nn.Module:
        blocks.append(cnf)
        for key in ("residual_pool", "residual_with_cls_embed", "rel_pos_embed", "proj_after_attn"):
            variants[key] = options[key]
        variants["stochastic_depth_prob"] = options["stochastic_depth_prob"]  # it grows to that of the network
        made: nn.Module = MultiscaleBlock(cnf=cnf, **options)
        return made

    get_model(name, **OPTIONS, block=take_down)
    small: nn.Module = MViT((side, side), frames, blocks, **variants)
    return small


def make_network(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network of the list and its inputs."""
    import torchvision

    entry = ENTRIES[name]
    if name.startswith("mvit"):
        model = _make_small_mvit(name, *entry.shapes[0][1:3])
    else:
        model = torchvision.models.get_model(name, **entry.options)
    if entry.kind == "detection with boxes":
        model = DetectorParts(model)
    return model, tuple(torch.randn(entry.batch, *shape) for shape in entry.shapes)
