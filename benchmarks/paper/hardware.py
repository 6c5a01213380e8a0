"""What GPUs have and can do, as their vendor publishes it."""

from typing import NamedTuple


class Gpu(NamedTuple):
    """Published peaks of a GPU, without sparsity.

    Attributes:
        name: of the product.
        architecture: compute capability, 90 for 9.0.
        bandwidth: bytes/s of device memory.
        half_rate: FLOP/s of matrix units in float16 and bfloat16, with sums in float32.
        multiprocessors: number of them.
        clock: Hz, at which `half_rate` holds.
        source: where the figures stand.
    """

    name: str
    architecture: int
    bandwidth: float
    half_rate: float
    multiprocessors: int
    clock: float
    source: str

    @property
    def exponentials(self) -> float:
        """Results/s of exp2: 16 a clock and multiprocessor.

        CUDA C++ Programming Guide, section "Arithmetic Instructions", compute capability 8.0, 9.0.
        """
        return 16.0 * self.multiprocessors * self.clock


GPUS = (
    Gpu(
        *("H200 SXM", 90, 4.8e12, 989e12, 132, 1.83e9),
        "NVIDIA H200 Tensor Core GPU datasheet; the chip is that of the H100",
    ),
    Gpu(
        *("H100 SXM", 90, 3.35e12, 989e12, 132, 1.83e9),
        "NVIDIA H100 Tensor Core GPU datasheet and architecture white paper",
    ),
    Gpu(
        *("A100 SXM 80 GB", 80, 2.039e12, 312e12, 108, 1.41e9),
        "NVIDIA A100 Tensor Core GPU datasheet and architecture white paper",
    ),
)


class Limits(NamedTuple):
    """What a multiprocessor holds at once."""

    warps: int
    blocks: int
    shared_bytes: int


# CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
LIMITS = {
    75: Limits(32, 16, 64 * 1024),
    80: Limits(64, 32, 164 * 1024),
    86: Limits(48, 16, 100 * 1024),
    89: Limits(48, 24, 100 * 1024),
    90: Limits(64, 32, 228 * 1024),
    100: Limits(64, 32, 228 * 1024),
    120: Limits(48, 24, 100 * 1024),
}
