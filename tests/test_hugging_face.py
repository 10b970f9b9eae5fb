"""Networks of Hugging Face from end to end: keywords in, their own classes out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import nni_sparsevd as svd
from nni_sparsevd.export import export
from nni_sparsevd.graph import name_leaves
from nni_sparsevd.masks import mask_group_channels_

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32, "num_labels": 4}


def build_vit() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ViTConfig(image_size=16, patch_size=8, **SIZES)
    return transformers.ViTForImageClassification(config).eval()  # type: ignore[no-any-return]


def build_bert() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=50, max_position_embeddings=20, **SIZES)
    return transformers.BertForSequenceClassification(config).eval()  # type: ignore[no-any-return]


def words(**more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    return {"input_ids": torch.randint(50, (2, 7), generator=generator), "attention_mask": mask, **more}


NETWORKS = {
    "ViT": (build_vit, {"pixel_values": torch.randn(2, 3, 16, 16)}),
    "ViT with all outputs": (
        build_vit,
        {"pixel_values": torch.randn(2, 3, 16, 16), "output_hidden_states": True, "labels": torch.tensor([0, 3])},
    ),
    "BERT": (build_bert, words()),
    "BERT without its classes": (build_bert, words(return_dict=False)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_network_of_hugging_face_goes_from_end_to_end(kind: str, tmp_path: Path) -> None:
    build, inputs = NETWORKS[kind]
    model = build()
    masks: svd.Masks = {}
    graph = svd.channel_graph(model, inputs)
    for group in graph.groups:
        if not group.pinned:
            mask_group_channels_(masks, model, graph, group, group.channels[1::2])
    small, plan = svd.shrink(model, inputs, masks)
    assert type(small) is type(model) and plan.removed >= 32
    masked = svd.bake_(build(), masks)
    assert svd.check(masked, small, inputs).ok
    svd.save(small, tmp_path / "small.safetensors")
    again = svd.load(tmp_path / "small.safetensors", build())
    with torch.no_grad():
        expected, loaded = name_leaves(small(**inputs)), name_leaves(again(**inputs))
    assert [name for name, _ in loaded] == [name for name, _ in expected]
    for (_, left), (_, right) in zip(expected, loaded, strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_a_network_of_hugging_face_is_exported_and_predicts(tmp_path: Path) -> None:
    inputs = words()
    model = svd.sparsify_(build_bert(), granularity="both", example_inputs=inputs)
    (model(**inputs).logits.sum() + svd.kl(model)).backward()
    assert svd.predict(model, inputs, samples=2).probabilities.shape == (2, 4)
    with torch.no_grad():
        model.get_parameter("bert.encoder.layer.0.intermediate.dense.log_sigma2")[::2] = 9
        model.get_parameter("bert.encoder.layer.0.output.dense.log_sigma2")[:, ::2] = 9
    assert svd.shrink_(model, inputs).removed >= 16
    baked = svd.bake_(model)
    found = export(baked, tmp_path / "net.pt2", inputs)
    assert found.ok and found.batches == (1, 2, 3) and [output.name for output in found.outputs] == ["logits"]
