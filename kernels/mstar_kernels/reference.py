"""Plain PyTorch forms of every op: what the fast forms mean. Clear before quick; no validation.

Arithmetic in float32, or in float64 when the inputs are float64 (tests take their truth there).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mstar_kernels.tree_attention import Tree

# ---- attention over the prefix tree; paged keys and values ----
# Shapes: R rows, H query heads, Hkv key/value heads, D head size, L tokens of a node, S keys a row sees,
# T tokens, C copies, B blocks, BS tokens of a block.


def tree_attention(
    q_RHD: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    tree: Tree,
    positions_R: torch.Tensor,
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """See `mstar_kernels.tree_attention.tree_attention`: gather each row's keys from its nodes, one softmax."""
    out_RHD = torch.zeros_like(q_RHD)
    for row in range(q_RHD.shape[0]):
        k_SHD, v_SHD, index_S = gather_row(k_cache, v_cache, tree, row)
        if sliding_window is not None:
            seen = index_S > int(positions_R[row]) - sliding_window
            k_SHD, v_SHD = k_SHD[seen], v_SHD[seen]
        if len(k_SHD):
            out_RHD[row] = _attend(q_RHD[row], k_SHD, v_SHD, scale, softcap).to(out_RHD.dtype)
    return out_RHD


def gather_row(
    k_cache: torch.Tensor, v_cache: torch.Tensor, tree: Tree, row: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys [S, Hkv, D], values [S, Hkv, D] and sequence indices [S] of all tokens that `row` attends to."""
    block_size = k_cache.shape[2]
    above = ((tree.node_row_begin <= row) & (row < tree.node_row_end)).nonzero().flatten().tolist()
    slots, indices = [], []
    for node in above:
        offset_L = torch.arange(int(tree.node_length[node]), device=k_cache.device)
        blocks_L = tree.block_table[int(tree.node_table[node])].long()[offset_L // block_size]
        slots.append(blocks_L * block_size + offset_L % block_size)
        indices.append(int(tree.node_start[node]) + offset_L)
    empty = torch.zeros(0, dtype=torch.long, device=k_cache.device)
    slot_S, index_S = torch.cat([empty, *slots]), torch.cat([empty, *indices])
    block_S, offset_S = slot_S // block_size, slot_S % block_size
    return k_cache[block_S, :, offset_S], v_cache[block_S, :, offset_S], index_S


def _attend(
    q_HD: torch.Tensor, k_SHD: torch.Tensor, v_SHD: torch.Tensor, scale: float, softcap: float | None
) -> torch.Tensor:
    compute = torch.float64 if q_HD.dtype == torch.float64 else torch.float32
    queries_per_head = q_HD.shape[0] // k_SHD.shape[1]
    k_HSD = k_SHD.to(compute).transpose(0, 1).repeat_interleave(queries_per_head, dim=0)
    v_HSD = v_SHD.to(compute).transpose(0, 1).repeat_interleave(queries_per_head, dim=0)
    scores_HS = torch.einsum("hd,hsd->hs", q_HD.to(compute), k_HSD) * scale
    if softcap is not None:
        scores_HS = softcap * torch.tanh(scores_HS / softcap)
    return torch.einsum("hs,hsd->hd", scores_HS.softmax(dim=-1), v_HSD)


def store_kv(
    k_THD: torch.Tensor, v_THD: torch.Tensor, k_cache: torch.Tensor, v_cache: torch.Tensor, slots_T: torch.Tensor
) -> None:
    """See `mstar_kernels.paged_kv.store_kv`."""
    block_T, offset_T = slots_T.long() // k_cache.shape[2], slots_T.long() % k_cache.shape[2]
    k_cache[block_T, :, offset_T] = k_THD
    v_cache[block_T, :, offset_T] = v_THD


def copy_blocks(k_cache: torch.Tensor, v_cache: torch.Tensor, src_C: torch.Tensor, dst_C: torch.Tensor) -> None:
    """See `mstar_kernels.paged_kv.copy_blocks`."""
    k_cache[dst_C.long()] = k_cache[src_C.long()]
    v_cache[dst_C.long()] = v_cache[src_C.long()]
