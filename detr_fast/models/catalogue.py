"""The model zoo as data: names, options, weights and published results."""

from dataclasses import dataclass, field

from .suggestion import did_you_mean

_OFFICIAL = "https://dl.fbaipublicfiles.com/detr/"


@dataclass(frozen=True)
class ZooEntry:
    """One model of the zoo.

    Attributes:
        name: what `build_model` takes.
        family: "detr" (`DETR`) or "demo" (`DETRDemo`).
        options: options in which the model differs from its family's defaults.
        url: the original's weights; the hexadecimal digits before the extension begin the file's
            SHA-256.
        shipped: file of weights in the package's folder models/weights.
        ap: COCO AP on val2017 in percent as published with the weights, None where nobody did.
    """

    name: str
    family: str = "detr"
    options: dict = field(default_factory=dict)
    url: str | None = None
    shipped: str | None = None
    ap: float | None = None


# AP: the table of pretrained models in the README of the original repository.
ZOO = {
    entry.name: entry
    for entry in (
        ZooEntry("detr_resnet50", url=_OFFICIAL + "detr-r50-e632da11.pth", ap=42.0),
        ZooEntry(
            "detr_resnet50_dc5",
            options={"dilation": True},
            url=_OFFICIAL + "detr-r50-dc5-f0fb7ef5.pth",
            ap=43.3,
        ),
        ZooEntry(
            "detr_resnet101",
            options={"backbone": "resnet101"},
            url=_OFFICIAL + "detr-r101-2c7b67e5.pth",
            ap=43.5,
        ),
        ZooEntry(
            "detr_resnet101_dc5",
            options={"backbone": "resnet101", "dilation": True},
            url=_OFFICIAL + "detr-r101-dc5-a2e86def.pth",
            ap=44.9,
        ),
        ZooEntry("detr_demo", family="demo", url=_OFFICIAL + "detr_demo-da2a99e9.pth"),
        ZooEntry(
            "detr_tiny",
            options={
                "num_classes": 6,
                "num_queries": 16,
                "hidden_dim": 128,
                "enc_layers": 1,
                "dec_layers": 3,
                "dim_feedforward": 256,
                "pre_norm": True,
                "backbone": "resnet_tiny",
                "backbone_norm": "batch",
                "backbone_stage": 2,
            },
            shipped="detr_tiny.pth",
        ),
    )
}


def zoo_entry(name: str) -> ZooEntry:
    """The entry of a name.

    Raises:
        ValueError: the name is unknown; the sentence suggests the closest and lists all.
    """
    if name not in ZOO:
        raise ValueError(f"model {name!r} is unknown; {did_you_mean(name, ZOO)}.")
    return ZOO[name]
