"""A DETR of Hugging Face transformers that has the weights of one of ours."""

import os

from torch import nn

# Its configuration asks a server for the names of backbones unless told that there is none.
os.environ["HF_HUB_OFFLINE"] = "1"

RENAMES = (
    ("backbone.0.body.", "model.backbone.model."),
    ("backbone.1.row_embed.", "model.position_embedding.row_embeddings."),
    ("backbone.1.col_embed.", "model.position_embedding.column_embeddings."),
    ("transformer.", "model."),
    ("input_proj.", "model.input_projection."),
    ("query_embed.", "model.query_position_embeddings."),
    ("class_embed.", "class_labels_classifier."),
    ("bbox_embed.", "bbox_predictor."),
    (".out_proj.", ".o_proj."),
    (".multihead_attn.", ".encoder_attn."),
    (".linear1.", ".mlp.fc1."),
    (".linear2.", ".mlp.fc2."),
    ("decoder.norm.", "decoder.layernorm."),
)


def transformers_detr(model: nn.Module, attention: str) -> nn.Module:
    """Their detector with the options and the weights of `model`, a `DETR`, in evaluation mode.

    Args:
        model: not copied: the weights are shared.
        attention: their `attn_implementation`, "eager" or "sdpa".

    Raises:
        ImportError: transformers or timm is not installed.
    """
    import torch
    import transformers

    # On the meta device nothing is initialised only to be overwritten.
    with torch.device("meta"):
        theirs = transformers.DetrForObjectDetection(configuration(model.config, attention)).eval()
    theirs.load_state_dict(carried_over(model.state_dict()), strict=True, assign=True)
    return theirs


def configuration(config: dict, attention: str):
    """Their configuration for the `config` of one of our models."""
    import transformers

    backbone = transformers.TimmBackboneConfig(
        backbone=config["backbone"],
        features_only=True,
        out_indices=[1, 2, 3, 4],
        use_pretrained_backbone=False,
        **({"output_stride": 16} if config["dilation"] else {}),
    )
    return transformers.DetrConfig(
        backbone_config=backbone,
        num_labels=config["num_classes"],
        num_queries=config["num_queries"],
        encoder_layers=config["enc_layers"],
        decoder_layers=config["dec_layers"],
        position_embedding_type=config["position_embedding"],
        dilation=config["dilation"],
        attn_implementation=attention,
    )


def carried_over(state: dict) -> dict:
    """Our state dict under their names."""
    carried = {}
    for name, tensor in state.items():
        for ours, theirs in RENAMES:
            name = name.replace(ours, theirs)
        if name.startswith(("model.encoder.layers", "model.decoder.layers")):
            norms = ["self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"]
            if "encoder.layers" in name:
                norms.remove("encoder_attn_layer_norm")
            for i, norm in enumerate(norms, start=1):
                name = name.replace(f".norm{i}.", f".{norm}.")
        if ".in_proj_" in name:
            stem, kind = name.split(".in_proj_")
            for letter, block in zip("qkv", tensor.chunk(3), strict=True):
                carried[f"{stem}.{letter}_proj.{kind}"] = block
        else:
            carried[name] = tensor
    return carried
