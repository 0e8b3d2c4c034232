"""Log-probabilities of given tokens under many temperatures, in one read of the logits.

How likely a drawn token would have been at other temperatures: to weigh draws of one temperature for another, or to
choose where to look next. One read serves all temperatures.
Legend: B logits rows, V vocabulary, R rows to evaluate, K temperatures, n banned ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mstar_kernels import reference
from mstar_kernels.dispatch import resolve

AVAILABLE = ("triton", "reference")
_LOGIT_TYPES = (torch.float32, torch.bfloat16, torch.float16)
_LARGEST_FLOAT = torch.finfo(torch.float32).max


@torch.no_grad()
def temperature_logprobs(
    logits: Tensor,
    tokens: Tensor,
    logit_rows: Tensor,
    temperatures: Tensor,
    banned_ids: Tensor,
    *,
    backend: str = "auto",
    checked: bool = False,
    deferred: bool = False,
) -> Tensor:
    """Log-probability of one token a row at each of its temperatures, without filters: float32 [R, K], in nats.

    Args:
        logits: [B, V], float32, bfloat16 or float16, contiguous.
        tokens: int32 [R].
        logit_rows: int32 [R]: the row of `logits` of each token; several may share one.
        temperatures: float32 [R, K], or [1, K] for all rows; above 0. Any positive value is exact.
        banned_ids: int32 [n], ascending and unique: excluded, as if their logit were -inf.
        backend: "auto", "triton" or "reference".
        checked: the caller answers for the values of all arguments but logits; they are not looked at.
        deferred: an unfit row is no error: on a GPU its values are NaN (it holds NaN or +inf) or +inf (it has no finite
            logit). The reference raises at once.

    Returns:
        The log-probabilities; -inf for a token that is banned or whose logit is -inf.

    Raises:
        ValueError: naming the argument that is wrong, or the first row whose logits hold NaN or +inf, or no finite
            value. Logits of banned ids may be anything.
    """
    chosen = resolve(backend, logits.device, AVAILABLE)
    _check_tensors(logits, tokens, logit_rows, temperatures, banned_ids)
    if not checked:
        _check_values(logits, tokens, logit_rows, temperatures, banned_ids)
    if chosen == "reference":
        return reference.temperature_logprobs(logits, tokens, logit_rows, temperatures, banned_ids)
    found = torch.empty(len(tokens), temperatures.shape[1], dtype=torch.float32, device=logits.device)
    if len(tokens):
        from mstar_kernels import temperature_logprobs_triton  # here, since Triton is not installed on every platform

        temperature_logprobs_triton.launch(logits, tokens, logit_rows, temperatures, banned_ids, found)
        if not deferred:
            _refuse_unfit(found[:, 0], logit_rows)
    return found


def _refuse_unfit(values: Tensor, logit_rows: Tensor) -> None:
    values = values.cpu()
    unfit = values.isnan() | (values > 0)
    if bool(unfit.any()):
        row = int(unfit.int().argmax())
        has_finite = bool(values[row].isnan())
        raise ValueError(reference.unfit_row(row, int(logit_rows[row]), has_finite, "temperature_logprobs"))


def _check_tensors(
    logits: Tensor, tokens: Tensor, logit_rows: Tensor, temperatures: Tensor, banned_ids: Tensor
) -> None:
    if logits.dtype not in _LOGIT_TYPES:
        raise ValueError(f"temperature_logprobs: logits is {logits.dtype}; allowed: float32, bfloat16, float16")
    _check_layout("logits", logits, "[B, V] with V at least 1", logits.dim() == 2 and logits.shape[1] > 0)
    rows = tokens.numel()
    several = temperatures.dim() == 2 and temperatures.shape[1] > 0
    for name, tensor, dtype, shape, has_shape in (
        ("tokens", tokens, torch.int32, "[R]", tokens.dim() == 1),
        ("logit_rows", logit_rows, torch.int32, f"[{rows}]", logit_rows.shape == (rows,)),
        ("temperatures", temperatures, torch.float32, f"[{rows}, K] or [1, K] with K at least 1",
         several and temperatures.shape[0] in (1, rows)),
        ("banned_ids", banned_ids, torch.int32, "[n]", banned_ids.dim() == 1),
    ):  # fmt: skip
        if tensor.dtype != dtype:
            raise ValueError(f"temperature_logprobs: {name} is {tensor.dtype}; allowed: {dtype}")
        if tensor.device != logits.device:
            raise ValueError(f"temperature_logprobs: {name} is on {tensor.device}; allowed: {logits.device}, as logits")
        _check_layout(name, tensor, shape, has_shape)


def _check_layout(name: str, tensor: Tensor, shape: str, has_shape: bool) -> None:
    if not has_shape or not tensor.is_contiguous():
        raise ValueError(
            f"temperature_logprobs: {name} has shape {tuple(tensor.shape)}, strides {tensor.stride()}; "
            f"allowed: a contiguous {shape}"
        )


def _check_values(logits: Tensor, tokens: Tensor, logit_rows: Tensor, temperatures: Tensor, banned_ids: Tensor) -> None:
    tiniest = torch.finfo(torch.float32).smallest_normal * torch.finfo(torch.float32).eps  # the least above 0
    for name, tensor, least, most in (
        ("tokens", tokens, 0, logits.shape[1] - 1),
        ("logit_rows", logit_rows, 0, logits.shape[0] - 1),
        ("temperatures", temperatures, tiniest, _LARGEST_FLOAT),
        ("banned_ids", banned_ids, 0, logits.shape[1] - 1),
    ):
        values = tensor.cpu().numpy()
        outside = ~((values >= least) & (values <= most))
        if outside.any():
            at = tuple(int(index[0]) for index in outside.nonzero())
            allowed = "above 0, finite" if name == "temperatures" else f"{least} to {most}"
            raise ValueError(f"temperature_logprobs: {name}{list(at)} = {values[at]}; allowed: {allowed}")
    if len(banned_ids) > 1 and not bool((banned_ids[1:] > banned_ids[:-1]).all()):
        raise ValueError("temperature_logprobs: banned_ids is not ascending; allowed: sorted ids without repeats")
