"""Known responses below their prompts: the prompt's tokens go through the model once, each response's once.

What a process reward model scores, in two forwards. Prefill runs the prompts and keeps their K and V; then the
responses of many prompts run packed, one behind the other without padding, each attending to its prompt and itself.
The result is that of one forward per response, and `BranchStats` counts what was really computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from mstar_engine.models.attention import (
    LayerCall,
    attention_step,
    causal_tail,
    hooked,
    language_configs,
    masked_attention,
    plain_attention,
)
from mstar_engine.models.backbone import backbone_of
from mstar_engine.models.compatibility import forget_rope_deltas, refuse_unsupported
from mstar_engine.models.image_attention import image_configs, packed_images
from mstar_engine.models.image_batches import ImageBatches, stack_inputs
from mstar_engine.models.positions import PositionWatch
from mstar_engine.models.prompts import EncodedPrompt


@dataclass(slots=True)
class BranchStats:
    """Tokens that went through the backbone: of prompts, and of the branches below them."""

    prompt_tokens: int = 0
    branch_tokens: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Trunk:
    """A prompt and the branches below it: int32 [length] token ids each, none empty."""

    prompt: EncodedPrompt
    branches: Sequence[np.ndarray]

    @property
    def tokens(self) -> int:
        """Tokens of all branches."""
        return sum(len(branch) for branch in self.branches)


@dataclass(frozen=True, slots=True, eq=False)
class BranchStates:
    """Final hidden states of some trunks, [tokens, D]; `begins[t][b]` is the row of branch b's first token."""

    hidden: torch.Tensor
    begins: list[list[int]]


@dataclass(frozen=True, slots=True, eq=False)
class _Bucket:
    """Branches whose prompts have one length, as [branches, longest] of packed rows.

    `keys`, `values`: by layer, [prompts, Hkv, prompt length, D]. `place` int64 [branches]: the prompt of each.
    `rows` int64 [branches, longest]: the packed row of a token, row 0 where the branch has ended.
    `real` int64: flat positions in `rows` that hold tokens, `targets` int64 the packed rows of the same.
    """

    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]
    place: torch.Tensor
    rows: torch.Tensor
    real: torch.Tensor
    targets: torch.Tensor


class _KeepStep:
    """Prefill: the model's usual attention; K and V of every layer are kept."""

    needs_mask = True

    def __init__(self) -> None:
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}

    def attend(self, call: LayerCall) -> torch.Tensor:
        self.keys[call.layer], self.values[call.layer] = call.key, call.value
        return call.usual()


class _BranchStep:
    """Packed branches [1, H, T, D]: each attends to its prompt and to its own tokens so far."""

    needs_mask = False

    def __init__(self, buckets: list[_Bucket]) -> None:
        self.buckets = buckets
        self._masks: dict[tuple[int, int | None], torch.Tensor] = {}

    def attend(self, call: LayerCall) -> torch.Tensor:
        query, key, value = (t[0].transpose(0, 1) for t in (call.query, call.key, call.value))  # [T, H, D]
        output = torch.empty_like(query)
        for number, bucket in enumerate(self.buckets):
            q, k, v = (t[bucket.rows].transpose(1, 2) for t in (query, key, value))  # [branches, H, longest, D]
            k = torch.cat([bucket.keys[call.layer][bucket.place], k], dim=2)
            v = torch.cat([bucket.values[call.layer][bucket.place], v], dim=2)
            mask = self._mask(number, q.shape[2], k.shape[2], call.sliding_window, q.device)
            if call.softcap is not None:
                attended = plain_attention(q, k, v, mask, call.scale, call.softcap)
            else:
                attended = masked_attention(q, k, v, mask, call.scale).transpose(1, 2)
            output[bucket.targets] = attended.flatten(0, 1)[bucket.real]
        return output.unsqueeze(0)

    def _mask(self, bucket: int, length: int, context: int, window: int | None, device: torch.device) -> torch.Tensor:
        mask = self._masks.get((bucket, window))
        if mask is None:
            mask = causal_tail(length, context, window, device)
            self._masks[bucket, window] = mask
        return mask


class BranchRunner:
    """Runs trunks through the backbone of a Hugging Face model (the part below its output head).

    `max_tokens` bounds the packed tokens of one forward; a trunk with more runs by itself, whole. No gradient.
    """

    def __init__(self, model: PreTrainedModel, *, max_tokens: int = 8192) -> None:
        refuse_unsupported(model.config)
        self.model = model
        self.backbone = backbone_of(model)
        self.max_tokens = max_tokens
        self.stats = BranchStats()
        self._configs = language_configs(model)
        self._image_configs = image_configs(model)
        self._batches = ImageBatches(model)
        self._positions = PositionWatch(model)

    def run(self, trunks: Sequence[Trunk]) -> Iterator[tuple[range, BranchStates]]:
        """The hidden states of `trunks`, in order, some at a time: (which trunks, their states).

        Raises ValueError for an empty branch, naming trunk and branch; and out of memory, naming what to lower.
        """
        for index, trunk in enumerate(trunks):
            for number, branch in enumerate(trunk.branches):
                if len(branch) == 0:
                    raise ValueError(f"trunk {index}, branch {number}: no token")
        begin = 0
        while begin < len(trunks):
            end, tokens = begin + 1, trunks[begin].tokens
            while end < len(trunks) and tokens + trunks[end].tokens <= self.max_tokens:
                tokens += trunks[end].tokens
                end += 1
            yield range(begin, end), self._forward(trunks[begin:end], tokens)
            begin = end

    @torch.no_grad()
    def _forward(self, trunks: Sequence[Trunk], tokens: int) -> BranchStates:
        was_training = self.model.training
        self.model.eval()
        try:
            with hooked(self._configs), packed_images(self._image_configs):
                return self._packed(trunks, tokens)
        except torch.OutOfMemoryError as error:
            prompts = sum(len(trunk.prompt.input_ids) for trunk in trunks)
            raise ValueError(
                f"step scores: out of memory in a pass over {len(trunks)} prompts of {prompts} tokens together, and "
                f"{tokens} tokens below them; lower max_tokens ({self.max_tokens}), or rollout.kv_cache_memory where a "
                "rollout shares the device"
            ) from error
        finally:
            forget_rope_deltas(self.model)
            self.model.train(was_training)

    def _packed(self, trunks: Sequence[Trunk], tokens: int) -> BranchStates:
        device = self.model.device
        ids = np.empty(tokens, np.int64)
        positions = np.empty(tokens, np.int64)
        begins: list[list[int]] = []
        row = 0
        for trunk in trunks:
            length = len(trunk.prompt.input_ids)
            begins.append([])
            for branch in trunk.branches:
                begins[-1].append(row)
                ids[row : row + len(branch)] = branch
                positions[row : row + len(branch)] = np.arange(length, length + len(branch))
                row += len(branch)
        buckets = []
        read = [i for i, trunk in enumerate(trunks) if trunk.branches]  # a prompt alone is asked for nothing
        for places in self._batches.split([trunks[i].prompt for i in read]):
            batch = [read[place] for place in places]
            kept, offsets = self._prefill([trunks[i].prompt for i in batch])
            members = [(place, i, b) for place, i in enumerate(batch) for b in range(len(trunks[i].branches))]
            for place, i, b in members:
                first = begins[i][b]
                positions[first : first + len(trunks[i].branches[b])] += offsets[place]
            lengths = [len(trunks[i].branches[b]) for _, i, b in members]
            first_rows = [begins[i][b] for _, i, b in members]
            buckets.append(_bucket(kept, [place for place, _, _ in members], first_rows, lengths, device))
        if not tokens:
            width = self.model.config.get_text_config(decoder=True).hidden_size
            return BranchStates(torch.empty(0, width, dtype=self.model.dtype, device=device), begins)
        packed = torch.from_numpy(ids)[None].to(device)
        with attention_step(_BranchStep(buckets)):
            output = self.backbone(
                input_ids=packed, position_ids=torch.from_numpy(positions)[None].to(device), use_cache=False
            )
        self.stats.branch_tokens += packed.numel()
        return BranchStates(output.last_hidden_state[0], begins)

    def _prefill(self, prompts: Sequence[EncodedPrompt]) -> tuple[_KeepStep, list[int]]:
        """Run prompts of one shape; what each layer keeps, and each prompt's rotary offset."""
        step = _KeepStep()
        inputs = stack_inputs(prompts, self.model.device)
        forget_rope_deltas(self.model)
        with attention_step(step), self._positions.watching():
            self.backbone(**inputs, use_cache=False)
        self.stats.prompt_tokens += inputs["input_ids"].numel()
        return step, self._positions.offsets(*inputs["input_ids"].shape)


def _bucket(
    kept: _KeepStep, place: list[int], first_rows: list[int], lengths: list[int], device: torch.device
) -> _Bucket:
    longest = max(lengths)
    column = np.arange(longest)[None]
    inside = column < np.asarray(lengths)[:, None]
    rows = np.where(inside, np.asarray(first_rows)[:, None] + column, 0)
    return _Bucket(
        keys=kept.keys,
        values=kept.values,
        place=torch.tensor(place, device=device),
        rows=torch.from_numpy(rows).to(device),
        real=torch.from_numpy(np.flatnonzero(inside)).to(device),
        targets=torch.from_numpy(rows[inside]).to(device),
    )
