"""Networks of Hugging Face's transformers, made from small configurations with random weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

IMAGE = 64
"""Side of the images."""
WORDS = 99
"""How many words a language has."""
WIDTH: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
PATCHES: dict[str, Any] = {**WIDTH, "image_size": IMAGE, "patch_size": 16}
STAGES: dict[str, Any] = {"embedding_size": 12, "hidden_sizes": [12, 16, 24, 32], "depths": [1, 1, 2, 1]}
WINDOWS: dict[str, Any] = {
    "image_size": IMAGE, "patch_size": 4, "embed_dim": 12, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4,
}  # fmt: skip
RESNET_BACKBONE: dict[str, Any] = {
    "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
    "backbone_config": ("ResNetConfig", {**STAGES, "out_features": ["stage2", "stage3", "stage4"]}),
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One network of the library."""

    kind: str
    """What the network is for."""
    model: str
    """Name of its class."""
    config: str
    """Name of the class of its configuration."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the configuration is made from; a pair of a name and settings stands for a configuration."""
    inputs: Callable[[], dict[str, Tensor]] = field(default=lambda: draw_images())
    """The arguments of a call, by name."""
    runs_in_64: bool = True
    """Whether the network runs in float64: the code of some makes tensors in float32."""


def draw_images(side: int = IMAGE, channels: int = 3) -> dict[str, Tensor]:
    """Two images."""
    return {"pixel_values": torch.randn(2, channels, side, side)}


def draw_words() -> dict[str, Tensor]:
    """Two sentences."""
    return {"input_ids": torch.randint(3, WORDS, (2, 9))}


def draw_sentence_pairs() -> dict[str, Tensor]:
    """Two sentences and what stands for them in another language."""
    return {**draw_words(), "decoder_input_ids": torch.randint(3, WORDS, (2, 7))}


def draw_images_and_words() -> dict[str, Tensor]:
    """Two images, each with a sentence."""
    return {**draw_words(), **draw_images()}


BACKBONES = {
    "vit": Entry("classification", "ViTForImageClassification", "ViTConfig", PATCHES),
    "deit": Entry("classification", "DeiTForImageClassification", "DeiTConfig", PATCHES),
    "beit": Entry("classification", "BeitForImageClassification", "BeitConfig", PATCHES),
    "data2vec_vision": Entry(
        "classification", "Data2VecVisionForImageClassification", "Data2VecVisionConfig", PATCHES
    ),
    "dinov2": Entry("classification", "Dinov2ForImageClassification", "Dinov2Config", {**PATCHES, "mlp_ratio": 2}),
    "dinov2_with_registers": Entry(
        "classification", "Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig",
        {**PATCHES, "mlp_ratio": 2},
    ),
    "dinov3_vit": Entry("backbone", "DINOv3ViTModel", "DINOv3ViTConfig", PATCHES),
    "dinov3_convnext": Entry(
        "backbone", "DINOv3ConvNextModel", "DINOv3ConvNextConfig",
        {"hidden_sizes": [12, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": IMAGE},
    ),
    "ijepa": Entry("classification", "IJepaForImageClassification", "IJepaConfig", PATCHES),
    "vit_mae": Entry("backbone", "ViTMAEModel", "ViTMAEConfig", {**PATCHES, "mask_ratio": 0.0}),
    "vit_msn": Entry("classification", "ViTMSNForImageClassification", "ViTMSNConfig", PATCHES),
    "hiera": Entry(
        "classification", "HieraForImageClassification", "HieraConfig",
        {"embed_dim": 12, "image_size": [IMAGE, IMAGE], "depths": [1, 2, 2, 1], "num_heads": [1, 2, 4, 8]},
    ),
    "swin": Entry("classification", "SwinForImageClassification", "SwinConfig", WINDOWS),
    "swinv2": Entry("classification", "Swinv2ForImageClassification", "Swinv2Config", WINDOWS),
    "donut_swin": Entry("classification", "DonutSwinModel", "DonutSwinConfig", WINDOWS),
    "convnext": Entry(
        "classification", "ConvNextForImageClassification", "ConvNextConfig",
        {"hidden_sizes": [12, 16, 24, 32], "depths": [1, 1, 2, 1]},
    ),
    "convnextv2": Entry(
        "classification", "ConvNextV2ForImageClassification", "ConvNextV2Config",
        {"hidden_sizes": [12, 16, 24, 32], "depths": [1, 1, 2, 1]},
    ),
    "resnet": Entry("classification", "ResNetForImageClassification", "ResNetConfig", STAGES),
    "regnet": Entry(
        "classification", "RegNetForImageClassification", "RegNetConfig", {**STAGES, "groups_width": 4},
    ),
    "bit": Entry("classification", "BitForImageClassification", "BitConfig", {**STAGES, "num_groups": 4}),
    "mobilenet_v1": Entry(
        "classification", "MobileNetV1ForImageClassification", "MobileNetV1Config",
        {"depth_multiplier": 0.25, "image_size": IMAGE},
    ),
    "mobilenet_v2": Entry(
        "classification", "MobileNetV2ForImageClassification", "MobileNetV2Config",
        {"depth_multiplier": 0.25, "image_size": IMAGE},
    ),
    "efficientnet": Entry(
        "classification", "EfficientNetForImageClassification", "EfficientNetConfig",
        {"width_coefficient": 0.25, "depth_coefficient": 0.5, "image_size": IMAGE, "hidden_dim": 320},
    ),
    "mobilevit": Entry(
        "classification", "MobileViTForImageClassification", "MobileViTConfig",
        {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 12, 16, 24, 32, 40, 64], "image_size": IMAGE},
    ),
    "mobilevitv2": Entry(
        "classification", "MobileViTV2ForImageClassification", "MobileViTV2Config",
        {"width_multiplier": 0.5, "image_size": IMAGE},
    ),
    "levit": Entry(
        "classification", "LevitForImageClassification", "LevitConfig",
        {"hidden_sizes": [32, 48, 64], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "image_size": IMAGE,
         "key_dim": [8, 8, 8], "down_ops": [["Subsample", 8, 4, 4, 2, 2], ["Subsample", 8, 6, 4, 2, 2]]},
    ),
    "pvt": Entry(
        "classification", "PvtForImageClassification", "PvtConfig",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4],
         "image_size": IMAGE},
    ),
    "pvt_v2": Entry(
        "classification", "PvtV2ForImageClassification", "PvtV2Config",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4],
         "image_size": IMAGE},
    ),
    "cvt": Entry(
        "classification", "CvtForImageClassification", "CvtConfig",
        {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 4], "depth": [1, 2, 3]},
    ),
    "focalnet": Entry(
        "classification", "FocalNetForImageClassification", "FocalNetConfig",
        {"image_size": IMAGE, "embed_dim": 12, "depths": [1, 1, 2, 1], "focal_levels": [2, 2, 2, 2]},
    ),
    "poolformer": Entry(
        "classification", "PoolFormerForImageClassification", "PoolFormerConfig",
        {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1]},
    ),
    "swiftformer": Entry(
        "classification", "SwiftFormerForImageClassification", "SwiftFormerConfig",
        {"embed_dims": [8, 12, 16, 24], "depths": [1, 1, 2, 1], "image_size": IMAGE},
    ),
    "textnet": Entry("classification", "TextNetForImageClassification", "TextNetConfig", {}),
    "hgnet_v2": Entry("classification", "HGNetV2ForImageClassification", "HGNetV2Config", {}),
    "clip_vision": Entry("backbone", "CLIPVisionModel", "CLIPVisionConfig", PATCHES),
    "siglip_vision": Entry("backbone", "SiglipVisionModel", "SiglipVisionConfig", PATCHES),
    "clip": Entry(
        "image and text", "CLIPModel", "CLIPConfig",
        {"text_config": {**WIDTH, "vocab_size": WORDS, "projection_dim": 16}, "vision_config": PATCHES,
         "projection_dim": 16},
        draw_images_and_words,
    ),
    "siglip": Entry(
        "image and text", "SiglipModel", "SiglipConfig",
        {"text_config": {**WIDTH, "vocab_size": WORDS, "max_position_embeddings": 9}, "vision_config": PATCHES},
        draw_images_and_words,
    ),
    "sam_vision": Entry(
        "backbone", "SamVisionModel", "SamVisionConfig",
        {**WIDTH, "image_size": IMAGE, "patch_size": 8, "output_channels": 16, "mlp_dim": 48, "window_size": 4,
         "global_attn_indexes": [1], "num_pos_feats": 8},
    ),
    "dpt_vit": Entry(
        "depth", "DPTForDepthEstimation", "DPTConfig",
        {**PATCHES, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "fusion_hidden_size": 16,
         "neck_hidden_sizes": [8, 12, 16, 24], "is_hybrid": False},
    ),
    "glpn": Entry(
        "depth", "GLPNForDepthEstimation", "GLPNConfig",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4],
         "decoder_hidden_size": 16},
    ),
    "depth_anything": Entry(
        "depth", "DepthAnythingForDepthEstimation", "DepthAnythingConfig",
        {"backbone_config": ("Dinov2Config", {**PATCHES, "num_hidden_layers": 4, "mlp_ratio": 2, "patch_size": 8,
                             "out_indices": [1, 2, 3, 4], "reshape_hidden_states": False}),
         "reassemble_hidden_size": 32, "patch_size": 8, "fusion_hidden_size": 16, "head_hidden_size": 8,
         "neck_hidden_sizes": [8, 12, 16, 24]},
    ),
    "swin2sr": Entry(
        "image to image", "Swin2SRForImageSuperResolution", "Swin2SRConfig",
        {"image_size": 16, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
        lambda: draw_images(16),
    ),
}  # fmt: skip
SEGMENTERS = {
    "segformer": Entry(
        "segmentation", "SegformerForSemanticSegmentation", "SegformerConfig",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4],
         "decoder_hidden_size": 24},
    ),
    "upernet": Entry(
        "segmentation", "UperNetForSemanticSegmentation", "UperNetConfig",
        {"backbone_config": ("ConvNextConfig", {"hidden_sizes": [12, 16, 24, 32], "depths": [1, 1, 2, 1],
                             "out_features": ["stage1", "stage2", "stage3", "stage4"]}),
         "hidden_size": 16, "auxiliary_channels": 8, "auxiliary_in_channels": 24, "pool_scales": [1, 2]},
    ),
    "dpt_segmentation": Entry(
        "segmentation", "DPTForSemanticSegmentation", "DPTConfig",
        {**PATCHES, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "fusion_hidden_size": 16,
         "neck_hidden_sizes": [8, 12, 16, 24], "is_hybrid": False},
    ),
    "mobilenet_v2_deeplab": Entry(
        "segmentation", "MobileNetV2ForSemanticSegmentation", "MobileNetV2Config",
        {"depth_multiplier": 0.25, "image_size": IMAGE},
    ),
    "mobilevit_deeplab": Entry(
        "segmentation", "MobileViTForSemanticSegmentation", "MobileViTConfig",
        {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 12, 16, 24, 32, 40, 64], "image_size": IMAGE,
         "aspp_out_channels": 16},
    ),
    "beit_segmentation": Entry(
        "segmentation", "BeitForSemanticSegmentation", "BeitConfig",
        {**PATCHES, "num_hidden_layers": 4, "out_indices": [1, 2, 3, 4], "pool_scales": [1, 2]},
    ),
    "maskformer": Entry(
        "segmentation", "MaskFormerForInstanceSegmentation", "MaskFormerConfig",
        {"backbone_config": ("SwinConfig", {**WINDOWS, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 4],
                             "out_features": ["stage1", "stage2", "stage3", "stage4"]}),
         "decoder_config": ("DetrConfig", {**RESNET_BACKBONE, "d_model": 32, "encoder_layers": 1, "decoder_layers": 2,
                            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
                            "decoder_ffn_dim": 24, "num_queries": 6}),
         "fpn_feature_size": 32, "mask_feature_size": 32},
    ),
    "mask2former": Entry(
        "segmentation", "Mask2FormerForUniversalSegmentation", "Mask2FormerConfig",
        {"backbone_config": ("SwinConfig", {**WINDOWS, "depths": [1, 1, 1, 1], "num_heads": [2, 2, 4, 4],
                             "out_features": ["stage1", "stage2", "stage3", "stage4"]}),
         "hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "encoder_layers": 1, "decoder_layers": 3,
         "num_attention_heads": 2, "encoder_feedforward_dim": 24, "dim_feedforward": 24, "num_queries": 6},
    ),
}  # fmt: skip
DECODER: dict[str, Any] = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_queries": 6,
}  # fmt: skip
REAL_TIME: dict[str, Any] = {
    **DECODER, "encoder_hidden_dim": 16, "hidden_expansion": 1.0, "num_feature_levels": 3, "num_denoising": 0,
    "encoder_in_channels": [16, 24, 32], "decoder_in_channels": [16, 16, 16], "anchor_image_size": None,
    "decoder_n_points": 2,
}  # fmt: skip
DETECTORS = {
    "detr": Entry("detection", "DetrForObjectDetection", "DetrConfig", {**RESNET_BACKBONE, **DECODER}),
    "conditional_detr": Entry(
        "detection", "ConditionalDetrForObjectDetection", "ConditionalDetrConfig", {**RESNET_BACKBONE, **DECODER}
    ),
    "deformable_detr": Entry(
        "detection", "DeformableDetrForObjectDetection", "DeformableDetrConfig",
        {**RESNET_BACKBONE, **DECODER, "d_model": 32, "num_feature_levels": 3, "encoder_n_points": 2,
         "decoder_n_points": 2},
    ),
    "yolos": Entry(
        "detection", "YolosForObjectDetection", "YolosConfig",
        {**PATCHES, "image_size": [IMAGE, IMAGE], "num_detection_tokens": 5},
    ),
    "rt_detr": Entry(
        "detection", "RTDetrForObjectDetection", "RTDetrConfig",
        {**REAL_TIME, "backbone_config": (
            "RTDetrResNetConfig", {**STAGES, "out_features": ["stage2", "stage3", "stage4"]})},
    ),
    "rt_detr_v2": Entry(
        "detection", "RTDetrV2ForObjectDetection", "RTDetrV2Config",
        {**REAL_TIME, "backbone_config": (
            "RTDetrResNetConfig", {**STAGES, "out_features": ["stage2", "stage3", "stage4"]})},
    ),
    "d_fine": Entry(
        "detection", "DFineForObjectDetection", "DFineConfig",
        {**REAL_TIME, "decoder_n_points": [2, 2, 2], "backbone_config": (
            "HGNetV2Config", {"out_features": ["stage2", "stage3", "stage4"]}),
         "encoder_in_channels": [512, 1024, 2048]},
    ),
    "table_transformer": Entry(
        "detection", "TableTransformerForObjectDetection", "TableTransformerConfig", {**RESNET_BACKBONE, **DECODER}
    ),
    "owlvit": Entry(
        "detection", "OwlViTVisionModel", "OwlViTVisionConfig", PATCHES
    ),
}  # fmt: skip
TEXT = {
    "bert": Entry("text", "BertForMaskedLM", "BertConfig", {**WIDTH, "vocab_size": WORDS}, draw_words),
    "roberta": Entry("text", "RobertaForMaskedLM", "RobertaConfig", {**WIDTH, "vocab_size": WORDS}, draw_words),
    "gpt2": Entry(
        "text", "GPT2LMHeadModel", "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": WORDS}, draw_words,
    ),
    "llama": Entry(
        "text", "LlamaForCausalLM", "LlamaConfig", {**WIDTH, "num_key_value_heads": 2, "vocab_size": WORDS}, draw_words
    ),
    "t5": Entry(
        "text", "T5ForConditionalGeneration", "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": WORDS},
        draw_sentence_pairs,
    ),
}  # fmt: skip
ENTRIES = {**BACKBONES, **SEGMENTERS, **DETECTORS, **TEXT}


def make_network(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network of the list and what it is called with."""
    import transformers

    entry = ENTRIES[name]
    config = _make_config(entry.config, entry.settings)
    return getattr(transformers, entry.model)(config), entry.inputs()


def _make_config(name: str, settings: Mapping[str, Any]) -> Any:
    import transformers

    values = {}
    for key, value in settings.items():
        values[key] = _make_config(*value) if isinstance(value, tuple) else value
    return getattr(transformers, name)(**values)
