"""From random weights to a tiny model that can see: what a downloaded checkpoint brings and a built one lacks.

Three stages, for the tiny model only. `ground`: the vision tower and the projector learn to say, for every tile, its
colour and its digit *in the language model's own words* (the score of a word is the cosine with its input embedding),
so the language model later finds "red" among the image tokens by looking for its own embedding. `align`: the language
model learns to answer "Read the red and blue tiles."; that is plain supervised training on captions.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ProcessorMixin

from mstar_engine.config import PretrainConfig
from mstar_engine.data.digits import captions
from mstar_engine.data.tiles import CELL, COLOURS, GRID, Tile, digit_of, render, scans
from mstar_engine.models.backbone import hidden_states
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.train.collate import collate, imitate
from mstar_engine.train.schedule import Schedule
from mstar_engine.train.steps import StepExample, step_losses
from mstar_engine.train.trainer import StepStats, Trainer
from mstar_engine.types import Problem

COSINE_SCALE = 20.0
BLANK_SHARE = 0.4
WRONG_SHARE = 0.4
LABELS = ("+", "-")


def _tile_bank(processor: ProcessorMixin, pool: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Every scan of a pool on every colour, as the processor prepares it.

    Returns patches float32 [tiles + 1, 3, 16, 16] (the last one is bare paper), colours and digits int64 [tiles].
    """
    names = list(COLOURS)
    pairs = [(colour, scan) for colour in range(len(names)) for scan in pool]
    cells = GRID * GRID
    images = [
        render([Tile(names[c], digit_of(s), s, cell) for cell, (c, s) in enumerate(pairs[i : i + cells])])
        for i in range(0, len(pairs), cells)
    ]
    pixels = processor.image_processor([*images, render([])], return_tensors="pt")["pixel_values"]
    patches = pixels.unflatten(3, (GRID, CELL)).unflatten(2, (GRID, CELL)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    kept = torch.cat([patches[: len(pairs)], patches[-1:]])
    return kept, torch.tensor([c for c, _ in pairs]), torch.tensor([digit_of(s) for _, s in pairs])


def _word_scores(features: Tensor, embedding: nn.Embedding, ids: list[int]) -> Tensor:
    """Scaled cosines of features [n, width] with the embeddings of some words: [n, words]."""
    words = F.normalize(embedding.weight.detach()[ids], dim=-1)
    return COSINE_SCALE * F.normalize(features, dim=-1) @ words.T


class Grounding:
    """Dense supervision of the vision tower: pictures full of tiles, a colour word and a digit word for each."""

    def __init__(self, model: nn.Module, processor: ProcessorMixin, split: str = "train") -> None:
        self.model = model
        self.patches, self.colours, self.digits = _tile_bank(processor, scans(split))
        encode = processor.tokenizer.convert_tokens_to_ids
        self.colour_ids = encode([f"{name} " for name in COLOURS])
        self.digit_ids = encode([str(digit) for digit in range(10)])

    def scores(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw `batch` pictures of n tiles in all: colour scores [n, 6], digit scores [n, 10], both targets [n]."""
        cells = GRID * GRID
        picked = torch.randint(len(self.colours), (batch, cells), generator=generator)
        blank = torch.rand((batch, cells), generator=generator) < BLANK_SHARE
        patches = self.patches[torch.where(blank, len(self.colours), picked)]
        grid = patches.unflatten(1, (GRID, GRID)).permute(0, 3, 1, 4, 2, 5)
        pixels = grid.reshape(batch, 3, GRID * CELL, GRID * CELL)
        features = torch.stack(list(self.model.get_image_features(pixel_values=pixels).pooler_output))[~blank]
        picked = picked[~blank]
        embedding = self.model.get_input_embeddings()
        colour_scores = _word_scores(features, embedding, self.colour_ids)
        digit_scores = _word_scores(features, embedding, self.digit_ids)
        return colour_scores, digit_scores, self.colours[picked], self.digits[picked]


def ground(
    model: nn.Module,
    processor: ProcessorMixin,
    config: PretrainConfig,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Train the vision tower and the projector on colour and digit of every tile."""
    task = Grounding(model, processor)
    generator = torch.Generator().manual_seed(seed)
    horizon = max(config.ground_steps, 11)
    schedule = Schedule(peak=config.ground_learning_rate, kind="cosine", warmup=10, horizon=horizon, floor=0.05)
    language = {id(p) for p in model.get_decoder().parameters()} | {id(p) for p in model.lm_head.parameters()}
    trained = [p for p in model.parameters() if id(p) not in language]
    optimizer = torch.optim.AdamW(trained, lr=config.ground_learning_rate, weight_decay=0.05, fused=True)
    for step in range(config.ground_steps):
        optimizer.param_groups[0]["lr"] = schedule(step)
        colour_scores, digit_scores, colours, digits = task.scores(config.ground_batch_size, generator)
        loss = F.cross_entropy(colour_scores, colours) + F.cross_entropy(digit_scores, digits)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress is not None:
            progress(loss.item())


@torch.no_grad()
def grounding_accuracy(
    model: nn.Module, processor: ProcessorMixin, split: str = "validation", pictures: int = 64
) -> tuple[float, float]:
    """Shares of tiles whose colour and digit the tower names, on the scans of a split."""
    drawn = Grounding(model, processor, split).scores(pictures, torch.Generator().manual_seed(0))
    colour_scores, digit_scores, colours, digits = drawn
    right = [(s.argmax(-1) == t).float().mean().item() for s, t in ((colour_scores, colours), (digit_scores, digits))]
    return right[0], right[1]


def align(
    model: nn.Module,
    encoder: PromptEncoder,
    config: PretrainConfig,
    seed: int = 0,
    progress: Callable[[StepStats], None] | None = None,
) -> None:
    """Teach the language model to read tiles: one pass over fresh captions."""
    horizon = max(config.align_steps, 21)
    schedule = Schedule(peak=config.align_learning_rate, kind="linear", warmup=20, horizon=horizon, floor=0.1)
    trainer = Trainer(model, encoder, schedule, betas=(0.9, 0.98))
    examples = [imitate(p, encoder) for p in captions(config.align_steps * config.align_batch_size, seed)]
    trainer.train_epoch(examples, batch_size=config.align_batch_size, seed=seed, progress=progress)


@dataclass(frozen=True, slots=True, eq=False)
class Claims:
    """Readings of one picture, some of them wrong: `example.positions` are the ends of the lines, `digits` what each
    line's tile shows."""

    example: StepExample
    digits: list[int]


def claims(count: int, seed: int, tokenizer) -> list[Claims]:
    """Captions in which a digit is wrong with probability `WRONG_SHARE`."""
    rng, found = random.Random(f"claims/{seed}"), []
    for problem in captions(count, seed):
        lines = [line.rsplit(" ", 1) for line in (problem.response or "").split("\n\n")]
        right = [rng.random() >= WRONG_SHARE for _ in lines]
        said = [d if ok else rng.choice("0123456789".replace(d, "")) for ok, (_, d) in zip(right, lines)]
        parts = [
            tokenizer(f"{colour} {digit}\n\n", add_special_tokens=False)["input_ids"]
            for (colour, _), digit in zip(lines, said)
        ]
        claim = Problem(id=f"{problem.id}/claims", question=problem.question, images=problem.images)
        example = StepExample(
            problem=claim,
            response_ids=np.concatenate(parts).astype(np.int32),
            positions=np.cumsum([len(part) for part in parts]).astype(np.int32) - 1,
            labels=np.asarray(right, np.float32),
        )
        found.append(Claims(example, [int(digit) for _, digit in lines]))
    return found


def check(
    model: nn.Module,
    encoder: PromptEncoder,
    config: PretrainConfig,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Teach the language model to judge readings, and to know the digit that it judges by."""
    encode = encoder.tokenizer.convert_tokens_to_ids
    label_ids, digit_ids = encode(list(LABELS)), encode([str(digit) for digit in range(10)])
    batch_size, steps = config.check_batch_size, config.check_steps
    schedule = Schedule(
        peak=config.check_learning_rate, kind="linear", warmup=20, horizon=max(config.check_steps, 21), floor=0.1
    )
    trained = list(model.parameters())
    optimizer = torch.optim.AdamW(trained, lr=schedule(0), betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    found = claims(steps * batch_size, seed + 2, encoder.tokenizer)
    model.train()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = schedule(step)
        loss = _check_loss(model, encoder, found[step * batch_size : (step + 1) * batch_size], label_ids, digit_ids)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if progress is not None:
            progress(loss.item())
    model.eval()


def _check_loss(
    model: nn.Module, encoder: PromptEncoder, batch: Sequence[Claims], label_ids: list[int], digit_ids: list[int]
) -> Tensor:
    """The mean cross-entropy of the labels plus that of the digits, both at the ends of the lines."""
    examples = [one.example for one in batch]
    inputs = collate(examples, encoder, encoder.tokenizer.pad_token_id).inputs
    begins = [len(encoder.encode(example.problem).input_ids) for example in examples]
    rows = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor([len(one.digits) for one in batch]))
    columns = np.concatenate([begin + example.positions for begin, example in zip(begins, examples)])
    hidden = hidden_states(model, **inputs)[rows, torch.from_numpy(columns).long()]
    words = model.get_output_embeddings().weight
    labels = torch.from_numpy(np.concatenate([example.labels for example in examples]))
    digits = torch.tensor([digit for one in batch for digit in one.digits])
    judged = step_losses(hidden @ words[label_ids].T, labels).mean()
    return judged + F.cross_entropy(hidden @ words[digit_ids].T, digits)
