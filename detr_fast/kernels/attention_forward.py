"""Attention forward in Triton, over all keys or over a share of them, and the join of the shares.

Scores never leave the chip: a program goes over the keys of its queries tile by tile with a running
maximum and sum (Dao, FlashAttention-2, 2023, algorithm 1), in float32 and base 2.
"""

import triton
import triton.language as tl

from .attention_tile import LOG2_E, kept, load_rows, store_rows, valid_keys


@triton.jit
def _attend(
    state,
    q,
    key,
    value,
    seed,
    head,
    rows,
    start,
    stop,
    stride_kl,
    stride_vl,
    keys,
    columns,
    width,
    scale,
    threshold,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASKED: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds keys `start` to `stop` to the state of a tile of queries: sums, maxima, outputs."""
    total, largest, out = state
    for first in range(start, stop, BLOCK_K):
        index = first + tl.arange(0, BLOCK_K)
        end = stop if MASKED else None
        k = load_rows(key, index, stride_kl, end, HEAD_SIZE, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            inside = (index < stop) & (index % columns < width)
            scores = tl.where(inside[None, :], scores, float("-inf"))
        maximum = tl.maximum(largest, tl.max(scores, 1) * scale)
        # A row that has met no valid key yet keeps -inf, which must not be subtracted from itself.
        shift = tl.where(maximum == float("-inf"), 0.0, maximum) if MASKED else maximum
        weights = tl.exp2(scores * scale - shift[:, None])
        correction = tl.exp2(largest - shift)
        total = total * correction + tl.sum(weights, 1)
        if DROPOUT:
            keep = kept(seed, head, rows[:, None], index[None, :], keys, threshold)
            weights = tl.where(keep, weights, 0.0)
        v = load_rows(value, index, stride_vl, end, HEAD_SIZE, BLOCK_D)
        out = out * correction[:, None]
        out = tl.dot(weights.to(v.dtype), v, out, input_precision=PRECISION)
        largest = maximum
    return total, largest, out


@triton.jit(
    do_not_specialize=["queries", "keys", "columns", "split_keys", "stride_ls", "threshold"]
)
def forward(
    query,
    key,
    value,
    extents,
    seed,
    out,
    logsumexp,
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kh,
    stride_kl,
    stride_vb,
    stride_vh,
    stride_vl,
    stride_os,
    stride_ob,
    stride_oh,
    stride_ol,
    stride_ls,
    heads,
    queries,
    keys,
    columns,
    split_keys,
    scale,
    threshold,
    rescale,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: a tile of queries of one head, over the keys of one split.

    Grid: (images * heads * tiles of queries, splits).
    """
    tiles = tl.cdiv(queries, BLOCK_Q)
    head = tl.program_id(0) // tiles
    split = tl.program_id(1).to(tl.int64)
    image = (head // heads).to(tl.int64)
    channel = (head % heads).to(tl.int64)
    rows = tl.program_id(0) % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)

    query += image * stride_qb + channel * stride_qh
    key += image * stride_kb + channel * stride_kh
    value += image * stride_vb + channel * stride_vh
    out += split * stride_os + image * stride_ob + channel * stride_oh
    logsumexp += split * stride_ls + head.to(tl.int64) * queries

    end, width = valid_keys(extents, image, keys, columns)
    start = tl.program_id(1) * split_keys
    stop = tl.minimum(start + split_keys, end)
    # Whole tiles without padding come first and need no mask.
    whole = tl.maximum(stop - start, 0) // BLOCK_K * BLOCK_K
    unmasked = start + tl.where(width < columns, 0, whole)

    q = load_rows(query, rows, stride_ql, queries, HEAD_SIZE, BLOCK_D)
    state = (
        tl.zeros([BLOCK_Q], tl.float32),
        tl.full([BLOCK_Q], float("-inf"), tl.float32),
        tl.zeros([BLOCK_Q, BLOCK_D], tl.float32),
    )
    for masked in tl.static_range(2):
        state = _attend(
            state,
            q,
            key,
            value,
            seed,
            head,
            rows,
            unmasked if masked else start,
            stop if masked else unmasked,
            stride_kl,
            stride_vl,
            keys,
            columns,
            width,
            scale * LOG2_E,
            threshold,
            HEAD_SIZE,
            BLOCK_D,
            BLOCK_K,
            masked == 1,
            DROPOUT,
            PRECISION,
        )
    total, largest, acc = state
    acc = acc * (rescale / tl.where(total == 0.0, 1.0, total))[:, None]
    store_rows(out, rows, stride_ol, queries, acc, HEAD_SIZE, BLOCK_D)
    tl.store(logsumexp + rows, largest + tl.log2(total), mask=rows < queries)


@triton.jit(do_not_specialize=["queries", "splits", "stride_ls"])
def join(
    partial_out,
    partial_logsumexp,
    out,
    logsumexp,
    stride_ps,
    stride_ls,
    stride_ob,
    stride_oh,
    stride_ol,
    heads,
    queries,
    splits,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """The splits of a tile of queries as one, in their order.

    Grid: (images * heads * tiles of queries,). The partial outputs are (splits, images, heads,
    queries, HEAD_SIZE), contiguous, each normalised by its own sum.
    """
    tiles = tl.cdiv(queries, BLOCK_Q)
    head = (tl.program_id(0) // tiles).to(tl.int64)
    rows = tl.program_id(0) % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)
    partial_out += head * queries * HEAD_SIZE
    partial_logsumexp += head * queries

    total = tl.zeros([BLOCK_Q], tl.float32)
    largest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for split in range(splits):
        share = tl.load(
            partial_logsumexp + split * stride_ls + rows, mask=rows < queries, other=float("-inf")
        )
        maximum = tl.maximum(largest, share)
        shift = tl.where(maximum == float("-inf"), 0.0, maximum)
        correction = tl.exp2(largest - shift)
        weight = tl.exp2(share - shift)
        total = total * correction + weight
        tile = load_rows(
            partial_out + split * stride_ps, rows, HEAD_SIZE, queries, HEAD_SIZE, BLOCK_D
        )
        acc = acc * correction[:, None] + tile * weight[:, None]
        largest = maximum

    out += head // heads * stride_ob + head % heads * stride_oh
    acc = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    store_rows(out, rows, stride_ol, queries, acc, HEAD_SIZE, BLOCK_D)
    tl.store(logsumexp + head * queries + rows, largest + tl.log2(total), mask=rows < queries)
