"""Decode attention over the prefix tree: one query token a row, the keys of shared nodes read once for all rows below.

`Tree` is what the scheduler's plan says about nodes, as tensors. A row's result does not depend on the other rows of
the batch or on the number of threads (CPU form: bit for bit, while the row's own nodes are cut the same way; on CUDA up
to rounding, since the whole step decides how a node is cut).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch

from mstar_kernels import reference
from mstar_kernels.attention_work import AttentionWork, Tiling, planned_work, workspace_size
from mstar_kernels.dispatch import extension, resolve
from mstar_kernels.tree_attention_tiles import refusal, tiling_of

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
AVAILABLE = ("triton", "cpu", "reference")


@dataclass(frozen=True, slots=True)
class Tree:
    """The nodes of a step. All tensors int32, contiguous, on one device. M nodes, R rows.

    A node is a run of tokens with blocks of its own; token `i` of node `m` lies in block
    `block_table[node_table[m], i // block_size]` at offset `i % block_size`. The rows below a node are contiguous.
    A row attends to every token of every node whose row range holds it; the order of nodes does not matter.

    node_row_begin: [M] first row below the node.
    node_row_end:   [M] one past the last row below the node; an empty range is allowed.
    node_table:     [M] row of `block_table` that lists the node's blocks.
    node_length:    [M] tokens; 0 is allowed. A leaf counts the token being fed, whose K and V are already stored.
    node_start:     [M] index, in the sequence, of the node's first token.
    block_table:    [tables, blocks_per_table] block ids; entries past a node's last block are never read.
    """

    node_row_begin: torch.Tensor
    node_row_end: torch.Tensor
    node_table: torch.Tensor
    node_length: torch.Tensor
    node_start: torch.Tensor
    block_table: torch.Tensor


def tree_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    tree: Tree,
    positions: torch.Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    backend: str = "auto",
    checked: bool = False,
    work: AttentionWork | None = None,
    workspace: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one query token a row over its path in the tree.

    Args:
        q: [R, H, D], float32, bfloat16 or float16.
        k_cache, v_cache: [blocks, Hkv, block_size, D], contiguous, one dtype of the three. Query head h reads
            key/value head h // (H // Hkv).
        tree: the nodes above the rows.
        positions: int32 [R], sequence index of each row's query token. Read only with a sliding window.
        scale: factor on the dot products, usually D ** -0.5.
        sliding_window: W: only keys at sequence index > positions[r] - W are seen. None: all.
        softcap: scores become softcap * tanh(score / softcap). None: not.
        backend: "auto", "triton", "cpu" or "reference".
        checked: the caller answers for the tree's ranges (it has checked this plan already, say at an earlier
            layer); shapes, dtypes and devices are looked at anyway.
        work: Triton form: the work list of this tree, on q's device, planned with the tiling of these shapes
            (`tree_attention_tiles.tiling_of`) for R rows or more. Then nothing but `block_table` is read of the tree,
            and with checked=True nothing is copied to the host and no size depends on the contents of a tensor, so
            that a CUDA graph can hold the call (one before it, outside the graph, compiles). None: planned here.
        workspace: Triton form: float32, at least `workspace_size(work, H, D)` elements, for partial results. None:
            allocated here.

    Returns:
        [R, H, D] in q's dtype, accumulated in float32. A row that sees no key gets zeros.

    Raises:
        ValueError: a shape, dtype, device or option is wrong, the tree points outside the cache, or the work list is
            another shape's; before any work.
    """
    _check_tensors(q, k_cache, v_cache, tree, positions)
    _check_options(scale, sliding_window, softcap)
    if not checked:
        check_tree(tree, rows=q.shape[0], num_blocks=k_cache.shape[0], block_size=k_cache.shape[2])
    chosen = resolve(backend, q.device, AVAILABLE)
    if chosen == "cpu":
        return _cpu(q, k_cache, v_cache, tree, positions, scale, sliding_window, softcap)
    refused = refusal(q.shape[1] // k_cache.shape[1], q.shape[2])
    if refused is not None and backend == "triton":
        raise ValueError(f"tree_attention: {refused}")
    if chosen == "triton" and refused is None:
        return _triton(q, k_cache, v_cache, tree, positions, scale, sliding_window, softcap, work, workspace)
    return reference.tree_attention(
        q, k_cache, v_cache, tree, positions, scale=scale, sliding_window=sliding_window, softcap=softcap
    )


def check_tree(tree: Tree, *, rows: int, num_blocks: int, block_size: int) -> None:
    """Raise ValueError unless every node lies within `rows`, the block table and the cache."""
    tables, blocks_per_table = tree.block_table.shape
    if tree.node_length.numel() == 0:
        return
    begin, end = tree.node_row_begin, tree.node_row_end
    _refuse((begin < 0) | (begin > end) | (end > rows), "node_row_begin, node_row_end", f"0 <= begin <= end <= {rows}")
    _refuse((tree.node_table < 0) | (tree.node_table >= tables), "node_table", f"0 to {tables - 1}")
    _refuse(tree.node_start < 0, "node_start", "0 or more")
    limit = blocks_per_table * block_size
    _refuse((tree.node_length < 0) | (tree.node_length > limit), "node_length", f"0 to {limit}")
    used = (tree.node_length + (block_size - 1)) // block_size
    widest = int(used.max())
    blocks = tree.block_table[:, :widest][tree.node_table.long()]
    outside = (blocks < 0) | (blocks >= num_blocks)
    is_used = torch.arange(widest, device=used.device) < used[:, None]
    _refuse((outside & is_used).any(dim=1), "block_table", f"block ids 0 to {num_blocks - 1}")


def _refuse(bad_M: torch.Tensor, name: str, allowed: str) -> None:
    if bool(bad_M.any()):
        raise ValueError(
            f"tree_attention: {name} of node {int(bad_M.int().argmax())} is out of range; allowed: {allowed}"
        )


def _check_tensors(
    q: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, tree: Tree, positions: torch.Tensor
) -> None:
    if q.dim() != 3 or k_cache.dim() != 4:
        raise ValueError(
            f"tree_attention: q has shape {tuple(q.shape)}, k_cache {tuple(k_cache.shape)}; "
            "expected [R, H, D] and [blocks, Hkv, block_size, D]"
        )
    if v_cache.shape != k_cache.shape or v_cache.dtype != k_cache.dtype:
        raise ValueError(
            f"tree_attention: v_cache is {tuple(v_cache.shape)} {v_cache.dtype}, "
            f"k_cache {tuple(k_cache.shape)} {k_cache.dtype}; they must agree"
        )
    _, heads, head_dim = q.shape
    if k_cache.shape[3] != head_dim or head_dim == 0 or k_cache.shape[2] == 0:
        raise ValueError(f"tree_attention: q has D={head_dim}, k_cache has shape {tuple(k_cache.shape)}")
    if k_cache.shape[1] == 0 or heads % k_cache.shape[1]:
        raise ValueError(f"tree_attention: H={heads} is not a multiple of Hkv={k_cache.shape[1]}")
    for name, tensor in (("q", q), ("k_cache", k_cache)):
        if tensor.dtype not in DTYPES:
            raise ValueError(f"tree_attention: {name} is {tensor.dtype}; allowed: float32, bfloat16, float16")
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("tree_attention: k_cache and v_cache must be contiguous")

    ints = [(field.name, getattr(tree, field.name)) for field in fields(tree)]
    for name, tensor in [*ints, ("positions", positions)]:
        if tensor.dtype != torch.int32 or not tensor.is_contiguous():
            raise ValueError(f"tree_attention: {name} must be contiguous int32, not {tensor.dtype}")
        if tensor.device != q.device:
            raise ValueError(f"tree_attention: {name} is on {tensor.device}, q on {q.device}")
    if k_cache.device != q.device or v_cache.device != q.device:
        raise ValueError(f"tree_attention: k_cache, v_cache are on {k_cache.device}, {v_cache.device}; q on {q.device}")
    nodes = tree.node_length.shape
    if len(nodes) != 1 or any(tensor.shape != nodes for name, tensor in ints if name != "block_table"):
        raise ValueError("tree_attention: the node arrays of the tree must all have shape [M]")
    if tree.block_table.dim() != 2:
        raise ValueError(f"tree_attention: block_table has shape {tuple(tree.block_table.shape)}; expected two axes")
    if positions.shape != q.shape[:1]:
        raise ValueError(f"tree_attention: positions has shape {tuple(positions.shape)}; expected [{q.shape[0]}]")


def _check_options(scale: float, sliding_window: int | None, softcap: float | None) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"tree_attention: scale={scale}; it must be finite")
    if sliding_window is not None and sliding_window < 1:
        raise ValueError(f"tree_attention: sliding_window={sliding_window}; allowed: 1 or more, or None")
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"tree_attention: softcap={softcap}; allowed: above 0 and finite, or None")


def _cpu(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    tree: Tree,
    positions: torch.Tensor,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    isa: str = "",
) -> torch.Tensor:
    q = q.contiguous()
    out = torch.empty_like(q)
    if out.numel():
        extension().tree_attention(
            q.data_ptr(), k_cache.data_ptr(), v_cache.data_ptr(), out.data_ptr(),
            DTYPES[q.dtype], DTYPES[k_cache.dtype],
            q.shape[0], q.shape[1], k_cache.shape[1], q.shape[2], k_cache.shape[2],
            tree.node_length.shape[0], tree.node_row_begin.data_ptr(), tree.node_row_end.data_ptr(),
            tree.node_table.data_ptr(), tree.node_length.data_ptr(), tree.node_start.data_ptr(),
            tree.block_table.data_ptr(), tree.block_table.shape[1], positions.data_ptr(),
            scale, min(sliding_window or 0, 2**31 - 1), softcap or 0.0, isa,
        )  # fmt: skip
    return out


def _triton(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    tree: Tree,
    positions: torch.Tensor,
    scale: float,
    sliding_window: int | None,
    softcap: float | None,
    work: AttentionWork | None,
    workspace: torch.Tensor | None,
) -> torch.Tensor:
    rows, heads, head_dim = q.shape
    kv_heads, block_size = k_cache.shape[1:3]
    shapes = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim, q_dtype=q.dtype, kv_dtype=k_cache.dtype)
    tiling = tiling_of(**shapes, device=q.device)
    if work is None:
        work = planned_work(tree, tiling, rows=rows, block_size=block_size)
    _check_work(work, workspace, q, tiling)
    if workspace is None:
        workspace = torch.empty(workspace_size(work, heads, head_dim), dtype=torch.float32, device=q.device)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel():
        from mstar_kernels import tree_attention_triton  # here, since Triton is not installed on every platform

        q = q if q.stride(2) == 1 else q.contiguous()
        tree_attention_triton.launch(
            q, k_cache, v_cache, tree.block_table, positions, work, workspace, out, scale, sliding_window, softcap
        )
    return out


def _check_work(work: AttentionWork, workspace: torch.Tensor | None, q: torch.Tensor, tiling: Tiling) -> None:
    for name in ("kv_heads", "narrow_rows", "wide_rows"):
        given, expected = getattr(work.tiling, name), getattr(tiling, name)
        if given != expected:
            raise ValueError(f"tree_attention: work.tiling has {name}={given}; expected {expected} for these shapes")
    if work.data.device != q.device:
        raise ValueError(f"tree_attention: work is on {work.data.device}, q on {q.device}")
    rows = work.row_slots.shape[0] - 1
    if rows < q.shape[0]:
        raise ValueError(f"tree_attention: work is of {rows} rows, q of {q.shape[0]}")
    if workspace is None:
        return
    least = workspace_size(work, q.shape[1], q.shape[2])
    if workspace.dtype != torch.float32 or workspace.dim() != 1 or not workspace.is_contiguous():
        raise ValueError(
            f"tree_attention: workspace is {workspace.dtype} of shape {tuple(workspace.shape)}; "
            "it must be a contiguous float32 vector"
        )
    if workspace.device != q.device or workspace.shape[0] < least:
        raise ValueError(
            f"tree_attention: workspace has {workspace.shape[0]} elements on {workspace.device}; "
            f"expected at least {least} on {q.device}"
        )
