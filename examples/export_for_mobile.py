"""Turn a network with removed channels into files for a phone, each checked in its own runtime.

ExecuTorch's `.pte` needs `pip install 'nni_sparsevd[mobile]'`, ONNX needs `[export]`; a runtime that is missing is
skipped.  Here every second channel is removed, in the place of training.  Run: `python examples/export_for_mobile.py`
"""

from pathlib import Path

import timm
import torch

import nni_sparsevd as svd
from nni_sparsevd.export import export
from nni_sparsevd.masks import mask_group_channels_

torch.manual_seed(0)
image = torch.randn(1, 3, 64, 64)
model = timm.create_model("mobilenetv3_small_050", num_classes=10).eval()

graph = svd.channel_graph(model, image)
masks = {}
for group in graph.groups:
    if not group.pinned:
        mask_group_channels_(masks, model, graph, group, group.channels[1::2])

small, plan = svd.shrink(model, image, masks)
small = svd.fuse(small, image)  # batch norms go into the convolutions before them
print(f"{plan.removed:,} channels removed")
for path in (Path("small.pt2"), Path("small.onnx"), Path("small.pte")):
    try:
        print(export(small, path, image))
    except svd.SparseVDError as error:
        print(f"{path} skipped: {error}")
