"""The model zoo as data: names, options, weights and published results."""

from dataclasses import dataclass, field

from .suggestion import did_you_mean

_OFFICIAL = "https://dl.fbaipublicfiles.com/detr/"


@dataclass(frozen=True)
class ZooEntry:
    """One model of the zoo.

    Attributes:
        name: what `build_model` takes.
        family: "detr" (`DETR`), "segmentation" (`DETRSegmentation`) or "demo" (`DETRDemo`).
        options: options in which the model differs from its family's defaults.
        url: the original's weights; the hexadecimal digits before the extension begin the file's
            SHA-256.
        shipped: file of weights in the package's folder models/weights.
        ap: COCO AP of boxes on val2017 in percent as published with the weights, None where nobody
            did.
        segm_ap: the same of masks.
        pq: COCO panoptic quality on val2017 in percent, likewise.
    """

    name: str
    family: str = "detr"
    options: dict = field(default_factory=dict)
    url: str | None = None
    shipped: str | None = None
    ap: float | None = None
    segm_ap: float | None = None
    pq: float | None = None


# The original's panoptic models have a class for each of COCO's ids up to 200, and fifty to spare.
_PANOPTIC_CLASSES = 250

# Of the models for generated shapes: small enough for two cores.
_TINY = {
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
}

# AP and PQ: the tables of pretrained models in the README of the original repository.
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
        ZooEntry(
            "detr_resnet50_panoptic",
            family="segmentation",
            options={"num_classes": _PANOPTIC_CLASSES},
            url=_OFFICIAL + "detr-r50-panoptic-00ce5173.pth",
            ap=38.8,
            segm_ap=31.1,
            pq=43.4,
        ),
        ZooEntry(
            "detr_resnet50_dc5_panoptic",
            family="segmentation",
            options={"num_classes": _PANOPTIC_CLASSES, "dilation": True},
            url=_OFFICIAL + "detr-r50-dc5-panoptic-da08f1b1.pth",
            ap=40.2,
            segm_ap=31.9,
            pq=44.6,
        ),
        ZooEntry(
            "detr_resnet101_panoptic",
            family="segmentation",
            options={"num_classes": _PANOPTIC_CLASSES, "backbone": "resnet101"},
            url=_OFFICIAL + "detr-r101-panoptic-40021d53.pth",
            ap=40.1,
            segm_ap=33.0,
            pq=45.1,
        ),
        ZooEntry("detr_demo", family="demo", url=_OFFICIAL + "detr_demo-da2a99e9.pth"),
        ZooEntry(
            "detr_tiny",
            options=_TINY,
            shipped="detr_tiny.pth",
        ),
        ZooEntry(
            "detr_tiny_panoptic",
            family="segmentation",
            options={**_TINY, "num_classes": 9, "attention_gain": 128.0},
            shipped="detr_tiny_panoptic.pth",
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


def panoptic_name(name: str) -> str:
    """The model that is a detector with a mask head on it.

    Args:
        name: of a detector, or of a model that has masks already.

    Raises:
        ValueError: the name is unknown, or the zoo has no such model.
    """
    if zoo_entry(name).family == "segmentation":
        return name
    if f"{name}_panoptic" not in ZOO:
        known = sorted(entry.name for entry in ZOO.values() if entry.family == "segmentation")
        raise ValueError(f"there is no panoptic model of {name}; known: {', '.join(known)}.")
    return f"{name}_panoptic"
