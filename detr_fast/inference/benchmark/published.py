"""What others published on the inference of DETR, to stand beside what is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """A row of table 1 of Carion et al., ECCV 2020.

    Attributes:
        parameters: in millions.
        gmac: what the paper calls GFLOPS: 10^9 multiply-adds, the mean of the first 100 images of
            val2017.
    """

    parameters: int
    gmac: int


@dataclass(frozen=True)
class Time:
    """A published time of the model alone.

    Attributes:
        model: name of the zoo.
        gpu: where; `SOURCES` says who published it.
        batch_size: images at once.
        seconds: for a batch.
    """

    model: str
    gpu: str
    batch_size: int
    seconds: float


PAPER = {
    "detr_resnet50": Size(41, 86),
    "detr_resnet50_dc5": Size(41, 187),
    "detr_resnet101": Size(60, 152),
    "detr_resnet101_dc5": Size(60, 253),
}

SOURCES = {
    "V100": "the original's model zoo: fp32, TorchScript transformer, first 100 images of val2017",
    "A100": "transformers' documentation of torch.compile; precision and image size not stated",
}
TIMES = (
    Time("detr_resnet50", "V100", 1, 0.036),
    Time("detr_resnet50_dc5", "V100", 1, 0.083),
    Time("detr_resnet101", "V100", 1, 0.050),
    Time("detr_resnet101_dc5", "V100", 1, 0.097),
    Time("detr_resnet50", "A100", 1, 0.0152),
    Time("detr_resnet50", "A100", 16, 0.162),
    Time("detr_resnet101", "A100", 16, 0.155),
)
