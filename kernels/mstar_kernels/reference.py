"""Every op in plain PyTorch: slow, obvious, and the specification the C++ and Triton forms are tested against."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mstar_kernels.tree_attention import Tree

# ---------------------------------------------------------------------------------------------------------------------
# sample_tokens. The noise of a token is a hash of (seed, problem, sample, position, token) and nothing else, so a draw
# does not depend on the batch, the row, the tile or the device, and every temperature sees the same noise.

_MASK_32 = 0xFFFFFFFF
_MASK_64 = 0xFFFFFFFFFFFFFFFF


def splitmix64(z: int) -> int:
    """The splitmix64 generator's output for state `z` (Steele, Lea and Flood 2014)."""
    z = (z + 0x9E3779B97F4A7C15) & _MASK_64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return z ^ (z >> 31)


def row_key(seed: int, problem: int, sample: int, position: int) -> int:
    """64-bit key of one draw. Negative arguments count as their 64-bit two's complement."""
    key = 0
    for part in (seed, problem, sample, position):
        key = splitmix64(key ^ (part & _MASK_64))
    return key


def token_hash(tokens: Tensor, k0: int, k1: int) -> Tensor:
    """32-bit hash of each token id (int64 in and out) under two 32-bit keys."""
    x = (tokens * 0x9E3779B1 + k0) & _MASK_32
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & _MASK_32
    x = x ^ k1
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & _MASK_32
    return x ^ (x >> 16)


def gumbel_noise(key: int, vocabulary: int, device: torch.device | str = "cpu") -> Tensor:
    """Gumbel noise of every token id under a row key, float64 [vocabulary]: -log(E), E exponential by inversion."""
    tokens = torch.arange(vocabulary, dtype=torch.int64, device=device)
    k0, k1 = key & _MASK_32, key >> 32
    h = token_hash(tokens, k0, k1).double()
    r = token_hash(tokens, k0 ^ 0x68E31DA4, k1 ^ 0xB5297A4D).double()
    v = (h + (r + 0.5) * 2.0**-32) * 2.0**-32
    return -torch.log(-torch.log1p(-v))


def kept_tokens(logits_V: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    """Which ids top-k, then top-p, then min-p keep: bool [V]. Logits float64, temperature above 0.

    Ids are ordered by logit, descending, ties by lowest id. Top-k keeps the first k (0: off); top-p the shortest prefix
    that reaches its share of what top-k kept, at least one id (1: off); min-p what is at least min_p as likely as the
    likeliest id (0: off).
    """
    order = torch.sort(logits_V, descending=True, stable=True).indices
    scaled = ((logits_V - logits_V.max()) / temperature)[order]
    weight = scaled.exp()
    keep = torch.ones_like(order, dtype=torch.bool)
    if top_k > 0:
        keep[top_k:] = False
    if top_p < 1.0:
        weight = weight * keep
        through = weight.cumsum(0)
        keep[1:] &= through[:-1] < top_p * weight.sum()
    if min_p > 0.0:
        keep &= scaled >= math.log(min_p)
    kept = torch.zeros_like(keep)
    kept[order] = keep
    return kept


def sample_tokens(
    logits: Tensor,
    logit_rows: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    problem: Tensor,
    sample: Tensor,
    position: Tensor,
    banned_ids: Tensor,
) -> tuple[Tensor, Tensor]:
    """Tokens int32 [R] and records float32 [R, 4]; arguments, records and errors as `mstar_kernels.sampling` says."""
    rows = logit_rows.numel()
    tokens = torch.empty(rows, dtype=torch.int32, device=logits.device)
    records = torch.empty(rows, 4, dtype=torch.float32, device=logits.device)
    for r in range(rows):
        b = int(logit_rows[r])
        x = logits[b].double()
        x[banned_ids.long()] = -math.inf
        if bool((x.isnan() | (x == math.inf)).any()):
            raise ValueError(unfit_row(r, b, has_finite=True))
        if bool((x == -math.inf).all()):
            raise ValueError(unfit_row(r, b, has_finite=False))
        raw = torch.log_softmax(x, 0)
        entropy = -(raw.exp() * raw.masked_fill(raw == -math.inf, 0.0)).sum()
        t = float(temperature[r])
        if t == 0.0:
            token, scaled, filtered = int((x == x.max()).nonzero()[0]), 0.0, 0.0
        else:
            s = (x - x.max()) / t
            kept = kept_tokens(x, t, int(top_k[r]), float(top_p[r]), float(min_p[r]))
            key = row_key(int(seed[r]), int(problem[r]), int(sample[r]), int(position[r]))
            score = torch.where(kept, s + gumbel_noise(key, x.numel(), x.device), -math.inf)
            token = int((score == score.max()).nonzero()[0])
            scaled = float(s[token] - s.logsumexp(0))
            filtered = float(s[token] - s[kept].logsumexp(0))
        tokens[r] = token
        records[r] = torch.tensor([float(raw[token]), scaled, filtered, float(entropy)])
    return tokens, records


def temperature_logprobs(
    logits: Tensor, tokens: Tensor, logit_rows: Tensor, temperatures: Tensor, banned_ids: Tensor
) -> Tensor:
    """Log-probabilities float32 [R, K]; arguments and errors as `mstar_kernels.temperature_logprobs` says."""
    rows = len(tokens)
    found = torch.empty(rows, temperatures.shape[1], dtype=torch.float32, device=logits.device)
    for r, t_K in enumerate(temperatures.expand(rows, -1).double()):
        b = int(logit_rows[r])
        x = logits[b].double()
        x[banned_ids.long()] = -math.inf
        if bool((x.isnan() | (x == math.inf)).any()):
            raise ValueError(unfit_row(r, b, True, "temperature_logprobs"))
        if bool((x == -math.inf).all()):
            raise ValueError(unfit_row(r, b, False, "temperature_logprobs"))
        scaled_KV = (x - x.max()) / t_K[:, None]
        found[r] = scaled_KV[:, int(tokens[r])] - scaled_KV.logsumexp(1)
    return found


def unfit_row(row: int, logits_row: int, has_finite: bool, op: str = "sample_tokens") -> str:
    """Message of the error on a row whose logits hold NaN or +inf, or no finite value."""
    what = "holds NaN or +inf; allowed: finite values and -inf"
    if not has_finite:
        what = "has no finite logit outside banned_ids; allowed: at least one"
    return f"{op}: row {row} (logits row {logits_row}) {what}"


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
    stored_T = slots_T >= 0
    slots_S = slots_T[stored_T].long()
    block_S, offset_S = slots_S // k_cache.shape[2], slots_S % k_cache.shape[2]
    k_cache[block_S, :, offset_S] = k_THD[stored_T]
    v_cache[block_S, :, offset_S] = v_THD[stored_T]


def copy_blocks(k_cache: torch.Tensor, v_cache: torch.Tensor, src_C: torch.Tensor, dst_C: torch.Tensor) -> None:
    """See `mstar_kernels.paged_kv.copy_blocks`."""
    for cache in (k_cache, v_cache):
        cache[..., dst_C.long(), :, :, :] = cache[..., src_C.long(), :, :, :]


# ---- step scores and their reduction ----
# Shapes: T tokens, D hidden size, L label rows, S steps, N responses.

_REDUCE = {
    "min": lambda scores: scores.min(),
    "mean": lambda scores: scores.mean(),
    "product": lambda scores: scores.prod(),
    "last": lambda scores: scores[-1],
}


def step_rewards(
    hidden: Tensor,
    label_rows: Tensor,
    bias: Tensor | None,
    step_positions: Tensor,
    response_steps: Tensor,
    *,
    head: str,
    reduction: str,
    deferred: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [S], reduced [N] and weakest int32 [N]; see `mstar_kernels.step_rewards.step_rewards`.

    Computes in float32, and in float64 where `hidden` is float64. `deferred`: a score whose logits hold NaN is NaN, one
    whose logits are infinite otherwise is infinite; its response is reduced to NaN.
    """
    compute = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    responses = len(response_steps) - 1
    scores_S = torch.empty(len(step_positions), dtype=compute, device=hidden.device)
    reduced_N = torch.empty(responses, dtype=compute, device=hidden.device)
    weakest_N = torch.empty(responses, dtype=torch.int32, device=hidden.device)
    for response in range(responses):
        begin, end = int(response_steps[response]), int(response_steps[response + 1])
        for step in range(begin, end):
            hidden_D = hidden[int(step_positions[step])].to(compute)
            logits_L = (label_rows.to(compute) * hidden_D).sum(1)
            if bias is not None:
                logits_L = logits_L + bias
            if not bool(logits_L.isfinite().all()):
                what = "NaN" if bool(logits_L.isnan().any()) else "infinite"
                if not deferred:
                    raise ValueError(unfit_score(response, step - begin, what))
                scores_S[step] = float("nan") if what == "NaN" else float("inf")
                continue
            scores_S[step] = (logits_L.sigmoid() if head == "sigmoid" else logits_L.softmax(0))[0]
        scores = scores_S[begin:end]
        if not bool(scores.isfinite().all()):
            reduced_N[response], weakest_N[response] = float("nan"), 0
            continue
        reduced_N[response] = _REDUCE[reduction](scores)
        weakest_N[response] = int((scores == scores.min()).nonzero()[0])
    return scores_S, reduced_N, weakest_N


def unfit_score(response: int, step: int, what: str) -> str:
    """Message of the error on a step whose logit is `what`: NaN or infinite."""
    return f"step_rewards: response {response}, step {step}: score is {what}; allowed: finite logits"
