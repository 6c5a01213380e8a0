"""Attention backward in Triton: weights are recomputed from the saved logarithm of their sums.

Two passes (Dao, FlashAttention-2, 2023, algorithm 2, without its atomic additions): one program
for each tile of queries sums over keys, then one for each tile of keys sums over queries, each in a
fixed order, so that gradients are the same in every run.
"""

import triton
import triton.language as tl

from .attention_tile import LOG2_E, kept, load_rows, store_rows, valid_keys


@triton.jit
def _add_keys(
    dq,
    q,
    do,
    lse,
    delta,
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
    rescale,
    HEAD_SIZE: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MASKED: tl.constexpr,
    DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds what keys `start` to `stop` contribute to the gradient of a tile of queries."""
    for first in range(start, stop, BLOCK_K):
        index = first + tl.arange(0, BLOCK_K)
        end = stop if MASKED else None
        k = load_rows(key, index, stride_kl, end, HEAD_SIZE, BLOCK_D)
        v = load_rows(value, index, stride_vl, end, HEAD_SIZE, BLOCK_D)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if MASKED:
            inside = (index < stop) & (index % columns < width)
            scores = tl.where(inside[None, :], scores, float("-inf"))
        weights = tl.exp2(scores * scale - lse[:, None])
        dweights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            keep = kept(seed, head, rows[:, None], index[None, :], keys, threshold)
            dweights = tl.where(keep, dweights * rescale, 0.0)
        dscores = weights * (dweights - delta[:, None])
        dq = tl.dot(dscores.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit(do_not_specialize=["queries", "keys", "columns", "threshold"])
def query_gradient(
    grad,
    query,
    key,
    value,
    extents,
    seed,
    out,
    logsumexp,
    grad_query,
    delta,
    stride_gb,
    stride_gh,
    stride_gl,
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kh,
    stride_kl,
    stride_vb,
    stride_vh,
    stride_vl,
    stride_ob,
    stride_oh,
    stride_ol,
    stride_db,
    stride_dh,
    stride_dl,
    heads,
    queries,
    keys,
    columns,
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
    """One program: a tile of queries of one head. Grid: (images * heads * tiles of queries,).

    Also writes `delta` (images, heads, queries), the product of output and its gradient summed over
    a row, for the pass over keys.
    """
    tiles = tl.cdiv(queries, BLOCK_Q)
    head = tl.program_id(0) // tiles
    image = (head // heads).to(tl.int64)
    channel = (head % heads).to(tl.int64)
    rows = tl.program_id(0) % tiles * BLOCK_Q + tl.arange(0, BLOCK_Q)

    grad += image * stride_gb + channel * stride_gh
    query += image * stride_qb + channel * stride_qh
    key += image * stride_kb + channel * stride_kh
    value += image * stride_vb + channel * stride_vh
    out += image * stride_ob + channel * stride_oh
    grad_query += image * stride_db + channel * stride_dh
    logsumexp += head.to(tl.int64) * queries
    delta += head.to(tl.int64) * queries

    q = load_rows(query, rows, stride_ql, queries, HEAD_SIZE, BLOCK_D)
    do = load_rows(grad, rows, stride_gl, queries, HEAD_SIZE, BLOCK_D)
    o = load_rows(out, rows, stride_ol, queries, HEAD_SIZE, BLOCK_D)
    row_delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta + rows, row_delta, mask=rows < queries)
    lse = tl.load(logsumexp + rows, mask=rows < queries, other=0.0)
    # An image without a valid key has -inf, which must not be subtracted from a masked score.
    lse = tl.where(lse == float("-inf"), 0.0, lse)

    end, width = valid_keys(extents, image, keys, columns)
    unmasked = tl.where(width < columns, 0, end // BLOCK_K * BLOCK_K)
    dq = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for masked in tl.static_range(2):
        dq = _add_keys(
            dq,
            q,
            do,
            lse,
            row_delta,
            key,
            value,
            seed,
            head,
            rows,
            unmasked if masked else 0,
            end if masked else unmasked,
            stride_kl,
            stride_vl,
            keys,
            columns,
            width,
            scale * LOG2_E,
            threshold,
            rescale,
            HEAD_SIZE,
            BLOCK_D,
            BLOCK_K,
            masked == 1,
            DROPOUT,
            PRECISION,
        )
    store_rows(grad_query, rows, stride_dl, queries, dq * scale, HEAD_SIZE, BLOCK_D)


@triton.jit(do_not_specialize=["queries", "keys", "columns", "threshold"])
def key_gradient(
    grad,
    query,
    key,
    value,
    extents,
    seed,
    logsumexp,
    delta,
    grad_key,
    grad_value,
    stride_gb,
    stride_gh,
    stride_gl,
    stride_qb,
    stride_qh,
    stride_ql,
    stride_kb,
    stride_kh,
    stride_kl,
    stride_vb,
    stride_vh,
    stride_vl,
    stride_db,
    stride_dh,
    stride_dl,
    heads,
    queries,
    keys,
    columns,
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
    """One program: a tile of keys of one head. Grid: (images * heads * tiles of keys,).

    Both gradients have the strides `stride_d*`. Tiles of padding alone get zeros without a product.
    """
    tiles = tl.cdiv(keys, BLOCK_K)
    head = tl.program_id(0) // tiles
    image = (head // heads).to(tl.int64)
    channel = (head % heads).to(tl.int64)
    first = tl.program_id(0) % tiles * BLOCK_K
    index = first + tl.arange(0, BLOCK_K)

    grad += image * stride_gb + channel * stride_gh
    query += image * stride_qb + channel * stride_qh
    key += image * stride_kb + channel * stride_kh
    value += image * stride_vb + channel * stride_vh
    grad_key += image * stride_db + channel * stride_dh
    grad_value += image * stride_db + channel * stride_dh
    logsumexp += head.to(tl.int64) * queries
    delta += head.to(tl.int64) * queries

    end, width = valid_keys(extents, image, keys, columns)
    k = load_rows(key, index, stride_kl, end, HEAD_SIZE, BLOCK_D)
    v = load_rows(value, index, stride_vl, end, HEAD_SIZE, BLOCK_D)
    dk = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for row in range(0, tl.where(first < end, queries, 0), BLOCK_Q):
        rows = row + tl.arange(0, BLOCK_Q)
        # Rows past the last query are zeros in both, and so add nothing.
        q = load_rows(query, rows, stride_ql, queries, HEAD_SIZE, BLOCK_D)
        do = load_rows(grad, rows, stride_gl, queries, HEAD_SIZE, BLOCK_D)
        lse = tl.load(logsumexp + rows, mask=rows < queries, other=0.0)
        row_delta = tl.load(delta + rows, mask=rows < queries, other=0.0)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        weights = tl.exp2(scores * (scale * LOG2_E) - lse[None, :])
        dweights = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        given = weights
        if DROPOUT:
            keep = kept(seed, head, rows[None, :], index[:, None], keys, threshold)
            given = tl.where(keep, weights * rescale, 0.0)
            dweights = tl.where(keep, dweights * rescale, 0.0)
        dv = tl.dot(given.to(do.dtype), do, dv, input_precision=PRECISION)
        dscores = weights * (dweights - row_delta[None, :])
        dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision=PRECISION)

    # A padded key has reached no row but its own.
    inside = ((index < end) & (index % columns < width))[:, None]
    dk = tl.where(inside, dk * scale, 0.0)
    dv = tl.where(inside, dv, 0.0)
    store_rows(grad_key, index, stride_dl, keys, dk, HEAD_SIZE, BLOCK_D)
    store_rows(grad_value, index, stride_dl, keys, dv, HEAD_SIZE, BLOCK_D)
