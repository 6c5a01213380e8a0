"""What the attention kernels share on one tile: loads, the extent of an image, dropout's mask."""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
# Philox with 7 rounds is the fewest that pass all tests (Salmon et al., SC 2011, section 4.3).
_ROUNDS = tl.constexpr(7)


@triton.jit
def load_rows(base, rows, stride, end, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """The rows of a matrix of HEAD_SIZE columns, (len(rows), BLOCK_D), padded with zeros.

    Rows from `end` on are zeros too; None where there are none, which saves the test.
    """
    columns = tl.arange(0, BLOCK_D)
    pointers = base + rows[:, None] * stride + columns[None, :]
    if end is None:
        if HEAD_SIZE == BLOCK_D:
            tile = tl.load(pointers)
        else:
            tile = tl.load(pointers, mask=columns[None, :] < HEAD_SIZE, other=0.0)
    else:
        inside = (rows[:, None] < end) & (columns[None, :] < HEAD_SIZE)
        tile = tl.load(pointers, mask=inside, other=0.0)
    return tile


@triton.jit
def store_rows(base, rows, stride, end, tile, HEAD_SIZE: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes a tile (len(rows), BLOCK_D) to the rows before `end`."""
    columns = tl.arange(0, BLOCK_D)
    pointers = base + rows[:, None] * stride + columns[None, :]
    inside = (rows[:, None] < end) & (columns[None, :] < HEAD_SIZE)
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def valid_keys(extents, image, keys, columns):
    """Where the valid keys of an image end in the order of keys, and its columns on the grid."""
    end = keys
    width = columns
    if extents is not None:
        rows = tl.load(extents + 2 * image)
        width = tl.minimum(tl.load(extents + 2 * image + 1), columns).to(tl.int32)
        rows = tl.minimum(rows, keys // columns).to(tl.int32)
        end = tl.where(width > 0, tl.maximum(rows, 0) * columns, 0)
    return end, width


@triton.jit
def kept(seed, head, queries, keys, num_keys, threshold):
    """Which weights dropout keeps: bits that depend on the seed, the head and the weight alone.

    `queries` and `keys` are indices that broadcast to the tile, `head` counts through the batch.
    """
    counter = (queries * num_keys + keys).to(tl.uint32)
    zero = counter * 0
    bits, _, _, _ = tl.philox(
        tl.load(seed), counter, zero + head.to(tl.uint32), zero, zero, _ROUNDS
    )
    return (bits >> 1).to(tl.int32) >= threshold
