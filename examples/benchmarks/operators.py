"""Which operators vision networks use, and which of them have no row in our table.

Run: `python examples/benchmarks/operators.py OUT.json`

One network of each family of timm, of torchvision and of transformers is recorded as our tracer does it, without data:
nothing is computed, and no weights are needed.  Where a network's way depends on its inputs, as in a detector after its
boxes are known, the rest is recorded while it runs on random images.
"""

import gc
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from operator import getitem
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nni_sparsevd.files import write_json
from nni_sparsevd.graph.example_inputs import as_arguments
from nni_sparsevd.graph.operators import OPERATORS, find_channel_rule
from nni_sparsevd.graph.recorder import as_functional, partial_write
from nni_sparsevd.graph.tracing import make_traceable_copy, record
from nni_sparsevd.studies.zoo.families import SIZES

LARGEST = 250e6
"""Parameters of a network; larger ones are left out."""
TORCHVISION = {
    "classification": (
        "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
        "maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18",
        "resnext50_32x4d", "shufflenet_v2_x0_5", "squeezenet1_0", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_32",
        "wide_resnet50_2", "deeplabv3_mobilenet_v3_large", "fcn_resnet50", "lraspp_mobilenet_v3_large",
    ),
    "detection": (
        "fasterrcnn_mobilenet_v3_large_fpn", "fcos_resnet50_fpn", "keypointrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn",
        "retinanet_resnet50_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large",
    ),
    "video": ("mc3_18", "mvit_v1_b", "mvit_v2_s", "r2plus1d_18", "r3d_18", "s3d", "swin3d_t"),
    "flow": ("raft_small", "raft_large"),
}  # fmt: skip
TRANSFORMERS = (
    "beit", "bit", "clip_vision_model", "clipseg_vision_model", "conditional_detr", "convnext", "convnextv2", "cvt",
    "data2vec-vision", "deformable_detr", "deit", "depth_anything", "detr", "dinov2", "dinov2_with_registers", "dpt",
    "efficientnet", "focalnet", "glpn", "hiera", "ijepa", "levit", "mask2former", "maskformer", "mobilenet_v1",
    "mobilenet_v2", "mobilevit", "mobilevitv2", "poolformer", "pvt", "pvt_v2", "regnet", "resnet", "rt_detr",
    "sam_vision_model", "segformer", "seggpt", "siglip_vision_model", "superpoint", "swiftformer", "swin", "swin2sr",
    "swinv2", "table-transformer", "textnet", "timesformer", "upernet", "van", "videomae", "vit", "vit_mae", "vit_msn",
    "vitdet", "vitpose_backbone", "vivit", "yolos", "zoedepth",
)  # fmt: skip
KNOWN = {str(target).replace("::", ".") + (".default" if isinstance(target, str) else "") for target in OPERATORS}
"""The names of the operators that have a row in our table."""
WAYS = (
    transformers.AutoModel, transformers.AutoBackbone, transformers.AutoModelForDepthEstimation,
    transformers.AutoModelForSemanticSegmentation, transformers.AutoModelForKeypointDetection,
)  # fmt: skip
"""Classes that make a network of a configuration; not each takes every one."""
NO_OPERATORS = {getitem, partial_write}
"""What a trace has beside operators: one of several results, and a tensor whose memory was written to."""
Network = tuple[nn.Module, tuple[Any, ...]]


class Listing(TorchDispatchMode):
    """Notes every operator that runs, one that has no row as those that it consists of."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.targets: set[Any] = set()

    def __torch_dispatch__(self, target: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if find_channel_rule(target) is None and not target._schema.is_mutable:
            with self:
                parts = target.decompose(*args, **(kwargs or {}))
            if parts is not NotImplemented:
                return parts
        self.targets.add(as_functional(target))
        return target(*args, **(kwargs or {}))


def make_timm(name: str) -> Iterator[Network]:
    model = timm.create_model(name)
    channels, _, side = model.pretrained_cfg["input_size"]
    for size in (side, *SIZES):
        yield model, (torch.empty(1, channels, size, size),)


def make_torchvision(kind: str, name: str) -> Iterator[Network]:
    options: dict[str, Any] = {"weights": None}
    if kind == "detection" or "deeplab" in name or "fcn" in name or "lraspp" in name:
        options["weights_backbone"] = None
    model = torchvision.models.get_model(name, **options)
    sides = (299, 320) if "inception" in name else (224, 320)
    for side in sides:
        image = torch.rand(3, side, side)
        if kind == "detection":
            yield model, ([image],)
        elif kind == "video":
            yield model, (image[None, :, None].expand(1, 3, 16, side, side),)
        elif kind == "flow":
            yield model, (image[None], image[None])
        else:
            yield model, (image[None],)


def make_transformers(kind: str) -> Iterator[Network]:
    config = transformers.AutoConfig.for_model(kind)
    for way in WAYS:
        if type(config) in way._model_mapping:
            model = way.from_config(config)
            break
    else:
        raise ValueError(f"{kind} has no automatic class")
    channels = getattr(config, "num_channels", 3)
    sides = getattr(config, "image_size", None)
    side = sides if isinstance(sides, int) else max(sides or (224,))
    for size in (side, 224, 256, 512):
        image = torch.rand(1, channels, size, size)
        yield model, (image,)
        yield model, (image[:, None].expand(1, getattr(config, "num_frames", 8), channels, size, size),)


def list_networks() -> Iterator[tuple[str, Callable[[], Iterator[Network]]]]:
    """The name of each network, and what makes it with one input after the other."""
    rows = json.loads(Path("docs/results/zoo.json").read_text())["rows"]
    for name in dict.fromkeys(row["model"] for row in rows if row["model"]):
        yield f"timm {name}", partial(make_timm, name)
    for kind, names in TORCHVISION.items():
        for name in names:
            yield f"torchvision {name}", partial(make_torchvision, kind, name)
    for kind in TRANSFORMERS:
        yield f"transformers {kind}", partial(make_transformers, kind)


def list_operators(networks: Iterator[Network]) -> tuple[set[Any], str]:
    """The operators of the first input that the network takes, and what stopped the recording, if anything did."""
    error = ""
    for model, inputs in networks:
        if sum(parameter.numel() for parameter in model.parameters()) > LARGEST:
            return set(), "too large"
        if isinstance(inputs[0], Tensor):
            attempt = record(make_traceable_copy(model, on_meta=True), as_arguments(inputs), on_meta=True)
            if attempt.error is None:
                return {node.target for node in attempt.trace.graph.nodes if node.op == "call_function"}, ""
            error = error or repr(attempt.error)[:200]
        if not isinstance(inputs[0], Tensor) or "depends on the values" in error:
            with torch.inference_mode(), Listing() as listing:
                model.eval()(*inputs)
            return listing.targets, error
    return set(), error


def main(out: str) -> None:
    users: Counter[str] = Counter()
    stopped: dict[str, str] = {}
    examples: dict[str, list[str]] = {}
    names = []
    for name, make in list_networks():
        names.append(name)
        targets, error = set(), ""
        for device in ("meta", "cpu"):  # some networks compute with their weights when they are made, or run
            try:
                with torch.device(device), warnings.catch_warnings(action="ignore"):
                    targets, error = list_operators(make())
            except Exception as failure:  # whatever a network's code raises
                error = repr(failure)[:200]
            if targets or error == "too large":
                break
        if error:
            stopped[name] = error
        for target in targets - NO_OPERATORS:
            users[str(target)] += 1
            examples.setdefault(str(target), []).append(name)
        print(name, len(targets), error, file=sys.stderr)
        gc.collect()
    for target, count in users.most_common():
        if target not in KNOWN:
            print(f"{count:4} {target}  {', '.join(examples[target][:3])}")
    versions = {library.__name__: library.__version__ for library in (torch, torchvision, timm, transformers)}
    write_json(
        Path(out),
        {"environment": versions, "networks": len(names), "stopped": stopped, "operators": dict(users.most_common())},
    )


if __name__ == "__main__":
    main(sys.argv[1])
