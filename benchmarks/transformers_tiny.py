"""Tiny random models of Hugging Face transformers, in which the loss is what a step is made of.

Pictures are 64 x 64 pixels. Sizes that do not matter for the loss are fixed here; those that do,
such as `num_labels`, `num_queries`, `d_model` and `decoder_layers`, are the caller's.
"""

from torch import nn

RESNET = {
    "embedding_size": 8,
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
# What DETR and Deformable DETR have in common.
PLAIN = {
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "auxiliary_loss": True,
    "backbone": None,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
}


def detr(**sizes: int) -> nn.Module:
    """Their DETR, of these sizes."""
    import transformers

    backbone = transformers.ResNetConfig(**RESNET, out_features=["stage4"])
    return transformers.DetrForObjectDetection(
        transformers.DetrConfig(backbone_config=backbone, **PLAIN, **sizes)
    )


def lw_detr(**sizes: int) -> nn.Module:
    """Their LW-DETR, of these sizes and `group_detr` groups of queries."""
    import transformers

    backbone = transformers.LwDetrViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        pretrain_image_size=64,
        out_indices=[1, 2],
        num_windows=4,
        window_block_indices=[0],
    )
    return transformers.LwDetrForObjectDetection(
        transformers.LwDetrConfig(
            backbone_config=backbone,
            projector_scale_factors=[1.0],
            decoder_self_attention_heads=2,
            decoder_cross_attention_heads=2,
            decoder_ffn_dim=32,
            **sizes,
        )
    )
