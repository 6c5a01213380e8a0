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
        batch_size: images at once.
        seconds: for a batch.
        who: software, hardware, and what is known of the images.
    """

    model: str
    batch_size: int
    seconds: float
    who: str


PAPER = {
    "detr_resnet50": Size(41, 86),
    "detr_resnet50_dc5": Size(41, 187),
    "detr_resnet101": Size(60, 152),
    "detr_resnet101_dc5": Size(60, 253),
}

# The model zoo in the README of the original repository.
_ZOO = "original, fp32, TorchScript transformer, V100, zoo protocol"
# Benchmarks in the documentation of transformers, "Optimize inference using torch.compile()".
_TRANSFORMERS = "transformers, torch.compile, A100, image size not stated"

TIMES = (
    Time("detr_resnet50", 1, 0.036, _ZOO),
    Time("detr_resnet50_dc5", 1, 0.083, _ZOO),
    Time("detr_resnet101", 1, 0.050, _ZOO),
    Time("detr_resnet101_dc5", 1, 0.097, _ZOO),
    Time("detr_resnet50", 1, 0.0152, _TRANSFORMERS),
    Time("detr_resnet50", 16, 0.162, _TRANSFORMERS),
    Time("detr_resnet101", 16, 0.155, _TRANSFORMERS),
)
