"""What a model has to compute at least: its matrix products, counted from shapes alone."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count


@dataclass(frozen=True)
class MatrixProduct:
    """A convolution, a matrix product or a whole attention.

    Attributes:
        flops: floating-point operations, two for a multiply-add.
        elements: numbers read and written.
    """

    flops: int
    elements: int


@dataclass(frozen=True)
class Work:
    """The matrix products of a forward pass, in order."""

    products: tuple[MatrixProduct, ...]

    @property
    def flops(self) -> int:
        """Floating-point operations in all, two for a multiply-add."""
        return sum(product.flops for product in self.products)

    def floor(self, rate: float, bandwidth: float, itemsize: int) -> float:
        """Seconds that no implementation of one product after another can beat.

        Each product takes its arithmetic or its traffic, whichever is longer; everything else is
        taken to happen on the way (the roofline of Williams et al., CACM 2009, product by product).

        Args:
            rate: FLOP/s of a large matrix product.
            bandwidth: bytes/s read and written by a large copy.
            itemsize: bytes of a number.
        """
        return sum(
            max(product.flops / rate, product.elements * itemsize / bandwidth)
            for product in self.products
        )


@torch.inference_mode()
def count_work(model: nn.Module, shape: tuple[int, int, int, int]) -> Work:
    """Counts the matrix products of one forward pass, of which nothing is computed.

    Args:
        model: on the meta device, in evaluation mode.
        shape: (B, 3, H, W) of the images.
    """
    with _Counter() as counter:
        model(torch.empty(shape, device="meta"))
    return Work(tuple(counter.products))


class _Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.products: list[MatrixProduct] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        flops = _FLOPS.get(func.overloadpacket)
        if flops is None:
            with self:
                out = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if out is NotImplemented else out
        out = func(*args, **kwargs)
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        elements = sum(_stored(x) for x in tensors)
        self.products.append(MatrixProduct(flops(*args, **kwargs, out_val=out), elements))
        return out


def _stored(x: Tensor) -> int:
    """Elements of a tensor, those of an expanded one once."""
    sizes = zip(x.shape, x.stride(), strict=True)
    return math.prod(size for size, stride in sizes if stride != 0)


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_, **__) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


# Attention is one product, whose weights need not be written.
_FLOPS: dict[object, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten.scaled_dot_product_attention: _attention_flops,
}
