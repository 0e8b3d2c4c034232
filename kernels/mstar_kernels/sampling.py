"""Sampling of one token per row, with the log-probabilities training needs, in one pass over the logits.

A draw is a function of (seed, problem, sample, position, token id) and the row's logits only. It does not depend on the
batch, the order of rows, threads or the backend, so a resumed or resharded run samples what the first would have.
Legend: B logits rows, V vocabulary, R rows to sample, n banned ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mstar_kernels import reference
from mstar_kernels.dispatch import extension, resolve

RAW, SCALED, FILTERED, ENTROPY = range(4)

AVAILABLE = ("triton", "cpu", "reference")
_LOGIT_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_ROW_DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "logit_rows": (torch.int32,),
    "temperature": (torch.float32,),
    "top_k": (torch.int32,),
    "top_p": (torch.float32,),
    "min_p": (torch.float32,),
    "seed": (torch.int64, torch.uint64),
    "problem": (torch.int64, torch.uint64),
    "sample": (torch.int32,),
    "position": (torch.int32,),
}
_LARGEST_FLOAT = torch.finfo(torch.float32).max


@dataclass(frozen=True, slots=True)
class Samples:
    """What `sample_tokens` drew.

    tokens: int32 [R].
    records: float32 [R, 4]; columns RAW, SCALED, FILTERED (log-probabilities of the token) and ENTROPY, all in nats.
    RAW and ENTROPY are of the softmax at temperature 1 over all ids not banned; SCALED is at the row's temperature
    without filters; FILTERED is renormalised over the kept ids. At temperature 0 SCALED and FILTERED are 0.
    """

    tokens: Tensor
    records: Tensor


def sample_tokens(
    logits: Tensor,
    *,
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
    backend: str = "auto",
    checked: bool = False,
    filtered: bool | None = None,
    out: Samples | None = None,
    deferred: bool = False,
) -> Samples:
    """Draw one token for each of R rows from `logits` [B, V]: float32, bfloat16 or float16, contiguous, left unchanged.

    logit_rows int32 [R]: the row of `logits` each row draws from; several may share one, and some may be unused.
    temperature float32 [R]: 0 is the argmax, lowest id on a tie, without filters; any positive value is exact.
    top_k int32 [R] (0: off), top_p float32 [R] (1: off), min_p float32 [R] (0: off): act in this order on the scaled
        distribution, ties going to the lowest id; top_p keeps at least one id.
    seed, problem int64 or uint64 [R], sample, position int32 [R]: address of the draw.
    banned_ids int32 [n], ascending and unique: excluded everywhere, as if their logit were -inf.
    backend: "auto", "cpu", "triton" or "reference".

    For a GPU that must not be waited for, as in a CUDA graph:
    checked: the caller answers for the values of all arguments but logits; they are not looked at.
    filtered: whether a row may have top_k, top_p or min_p. None: looked up, or with `checked` true.
    out: filled and returned.
    deferred: an unfit row is no error yet. Its token is negative, for `refuse_unfit`; a form on the CPU raises at once.

    Raises ValueError naming the argument that is wrong, or the first row whose logits hold NaN or +inf, or no finite
    value. Logits of banned ids may be anything.
    """
    chosen = resolve(backend, logits.device, AVAILABLE)
    row_arguments = {
        "logit_rows": logit_rows, "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "seed": seed, "problem": problem, "sample": sample, "position": position,
    }  # fmt: skip
    _check_tensors(logits, row_arguments, banned_ids)
    if not checked:
        _check_values(logits, row_arguments, banned_ids)
    rows, device = logit_rows.numel(), logits.device
    if out is None:
        tokens = torch.empty(rows, dtype=torch.int32, device=device)
        out = Samples(tokens, torch.empty(rows, 4, dtype=torch.float32, device=device))
    else:
        _check_out(out, rows, device)
    if chosen == "reference":
        tokens, records = reference.sample_tokens(logits, **row_arguments, banned_ids=banned_ids)
        out.tokens.copy_(tokens)
        out.records.copy_(records)
    elif chosen == "cpu":
        _cpu(logits, row_arguments, banned_ids, out)
    elif rows:
        from mstar_kernels import sampling_triton  # here, since Triton is not installed on every platform

        if filtered is None:
            filtered = checked or bool(((top_k > 0) | (top_p < 1) | (min_p > 0)).any())
        sampling_triton.launch(logits, row_arguments, banned_ids, out.tokens, out.records, filtered)
        if not deferred:
            refuse_unfit(out.tokens, logit_rows)
    return out


def refuse_unfit(tokens: Tensor, logit_rows: Tensor) -> None:
    """Raise what `sample_tokens` deferred: ValueError where a token is negative, naming the first such row.

    tokens: int32 [R], -1 for a row that holds NaN or +inf, -2 for one that has no finite logit. logit_rows: as there.
    """
    found = tokens.cpu().numpy()
    if (found < 0).any():
        row = int((found < 0).argmax())
        raise ValueError(reference.unfit_row(row, int(logit_rows[row]), has_finite=bool(found[row] == -1)))


def _cpu(logits: Tensor, row_arguments: dict[str, Tensor], banned_ids: Tensor, out: Samples) -> None:
    native = extension()
    native.sample_tokens(
        logits.data_ptr(),
        getattr(native.LogitType, _LOGIT_TYPES[logits.dtype]),
        logits.shape[1],
        len(out.tokens),
        *(tensor.data_ptr() for tensor in row_arguments.values()),
        banned_ids.data_ptr(),
        banned_ids.numel(),
        out.tokens.data_ptr(),
        out.records.data_ptr(),
    )


def _check_out(out: Samples, rows: int, device: torch.device) -> None:
    wanted = (("tokens", out.tokens, torch.int32, (rows,)), ("records", out.records, torch.float32, (rows, 4)))
    for name, tensor, dtype, shape in wanted:
        if tensor.dtype != dtype or tensor.shape != shape or tensor.device != device or not tensor.is_contiguous():
            raise ValueError(
                f"sample_tokens: out.{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}, strides "
                f"{tensor.stride()}; allowed: a contiguous {dtype} {shape} on {device}"
            )


def _check_tensors(logits: Tensor, row_arguments: dict[str, Tensor], banned_ids: Tensor) -> None:
    if logits.dtype not in _LOGIT_TYPES:
        raise ValueError(f"sample_tokens: logits is {logits.dtype}; allowed: float32, bfloat16, float16")
    if logits.ndim != 2 or logits.shape[1] == 0 or not logits.is_contiguous():
        raise ValueError(
            f"sample_tokens: logits has shape {tuple(logits.shape)}, strides {logits.stride()}; "
            "allowed: a contiguous [B, V] with V at least 1"
        )
    num_rows = row_arguments["logit_rows"].numel()
    for name, tensor in (*row_arguments.items(), ("banned_ids", banned_ids)):
        dtypes = _ROW_DTYPES.get(name, (torch.int32,))
        if tensor.dtype not in dtypes:
            allowed = " or ".join(str(dtype) for dtype in dtypes)
            raise ValueError(f"sample_tokens: {name} is {tensor.dtype}; allowed: {allowed}")
        if tensor.device != logits.device:
            raise ValueError(f"sample_tokens: {name} is on {tensor.device}; allowed: {logits.device}, as logits")
        if tensor.ndim != 1 or not tensor.is_contiguous() or (name != "banned_ids" and tensor.numel() != num_rows):
            size = "n" if name == "banned_ids" else num_rows
            raise ValueError(
                f"sample_tokens: {name} has shape {tuple(tensor.shape)}, strides {tensor.stride()}; "
                f"allowed: a contiguous [{size}]"
            )


def _check_values(logits: Tensor, row_arguments: dict[str, Tensor], banned_ids: Tensor) -> None:
    _check_range("logit_rows", row_arguments["logit_rows"], 0, logits.shape[0] - 1)
    _check_range("temperature", row_arguments["temperature"], 0.0, _LARGEST_FLOAT)
    _check_range("top_k", row_arguments["top_k"], 0, 2**31 - 1)
    _check_range("top_p", row_arguments["top_p"], 0.0, 1.0)
    _check_range("min_p", row_arguments["min_p"], 0.0, 1.0)
    _check_range("banned_ids", banned_ids, 0, logits.shape[1] - 1)
    if banned_ids.numel() > 1 and not bool((banned_ids[1:] > banned_ids[:-1]).all()):
        raise ValueError("sample_tokens: banned_ids is not ascending without repeats; allowed: sorted, unique ids")


def _check_range(name: str, tensor: Tensor, least: float, most: float) -> None:
    values = tensor.cpu().numpy()  # numpy's reductions cost a fraction of torch's on arrays this small
    if values.size == 0 or (values.min() >= least and values.max() <= most):
        return
    row = int((~((values >= least) & (values <= most))).argmax())
    raise ValueError(f"sample_tokens: {name}[{row}] = {values[row]}; allowed: {least} to {most}")
