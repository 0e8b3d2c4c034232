"""Pretraining of the tiny model: the tower learns to see, the language model to read."""

import torch

from mstar_engine.config import PretrainConfig
from mstar_engine.data.tiles import scans
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.train.pretrain import _tile_bank, align, ground, grounding_accuracy

torch.set_num_threads(1)


def test_the_bank_holds_every_tile_as_the_processor_sees_it():
    _, processor = build_tiny()
    pool = scans("validation")[:5]
    patches, colours, digits = _tile_bank(processor, pool)
    assert patches.shape == (31, 3, 16, 16) and len(colours) == len(digits) == 30
    assert len(set(colours.tolist())) == 6
    assert torch.equal(patches[-1][:, 0, 0], patches[-1][:, 8, 8])
    assert len({patch.numpy().tobytes() for patch in patches}) == 31


def test_grounding_teaches_colours_and_leaves_the_language_model_alone():
    model, processor = build_tiny()
    before = {name: p.clone() for name, p in model.model.language_model.named_parameters()}
    ground(model, processor, PretrainConfig(ground_steps=15, ground_batch_size=16))
    colour, digit = grounding_accuracy(model, processor, pictures=16)
    assert colour > 0.9 and digit > 0.2
    assert all(torch.equal(before[name], p) for name, p in model.model.language_model.named_parameters())


def test_alignment_is_supervised_training_on_captions():
    model, processor = build_tiny()
    losses = []
    config = PretrainConfig(align_steps=12, align_batch_size=8)
    align(model, PromptEncoder(processor), config, progress=lambda stats: losses.append(stats.loss))
    assert len(losses) == 12 and losses[-1] < losses[0]
