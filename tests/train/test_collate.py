"""Collation: labels on the response only, padding harmless, runs that fit."""

import numpy as np
import pytest
import torch

from mstar_engine.data.digits import demonstrations
from mstar_engine.models.prompts import EncodedPrompt, PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.train.collate import IGNORE, collate, imitate, micro_batches
from mstar_engine.types import Problem, TrainingExample

torch.set_num_threads(1)


class Prompts:
    """An encoder of ready-made prompts, by problem id."""

    def __init__(self, prompts):
        self.prompts = prompts

    def encode(self, problem):
        return self.prompts[problem.id]


def example(id, response, weight=1.0):
    problem = Problem(id=id, question="")
    return TrainingExample(problem=problem, response_ids=np.array(response, np.int32), weight=weight)


def prompt(length, image_shape=None, types=False):
    ids = torch.arange(10, 10 + length)
    inputs = {} if image_shape is None else {"pixel_values": torch.ones(image_shape)}
    return EncodedPrompt(ids, inputs, {"token_type_ids": torch.ones(length, dtype=torch.int64)} if types else {})


def test_layout():
    encoder = Prompts({"a": prompt(2, (1, 3), types=True), "b": prompt(4, (2, 3), types=True)})
    batch = collate([example("a", [5, 6, 7], 0.5), example("b", [8])], encoder, pad_id=99)
    assert batch.inputs["input_ids"].tolist() == [[10, 11, 5, 6, 7], [10, 11, 12, 13, 8]]
    assert batch.labels.tolist() == [[IGNORE, IGNORE, 5, 6, 7], [IGNORE] * 4 + [8]]
    assert batch.inputs["token_type_ids"].tolist() == [[1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    assert batch.inputs["pixel_values"].shape == (3, 3)
    assert batch.weights.tolist() == [0.5, 1.0] and batch.tokens == 4
    padded = collate([example("a", [5]), example("b", [8])], encoder, pad_id=99)
    assert padded.inputs["input_ids"][0].tolist() == [10, 11, 5, 99, 99]
    assert padded.labels[0].tolist() == [IGNORE, IGNORE, 5, IGNORE, IGNORE]


def test_text_only_and_image_prompts_mix():
    encoder = Prompts({"a": prompt(2), "b": prompt(2, (1, 3))})
    assert collate([example("a", [5]), example("b", [8])], encoder).inputs["pixel_values"].shape == (1, 3)


def test_shapes_that_disagree_are_named_and_run_apart():
    encoder = Prompts({"t": prompt(2), "a": prompt(2, (1, 3)), "b": prompt(2, (1, 4))})
    examples = [example("t", [5]), example("a", [5]), example("b", [8])]
    with pytest.raises(ValueError, match=r"'a' and 'b'.*\(3,\).*\(4,\)"):
        collate(examples, encoder)
    assert [len(run) for run in micro_batches(examples, encoder)] == [2, 1]


def test_runs_fit_the_token_budget_and_keep_order():
    encoder = Prompts({"p": prompt(4)})
    examples = [example("p", [1] * n) for n in (2, 6, 1, 1, 1, 30, 2)]
    runs = list(micro_batches(examples, encoder, max_tokens=20))
    assert [e for run in runs for e in run] == examples
    for run in runs:
        assert len(run) == 1 or len(run) * max(4 + len(e.response_ids) for e in run) <= 20
    assert [len(run) for run in runs] == [2, 3, 1, 1]
    assert list(micro_batches([], encoder)) == []


def test_an_empty_response_is_refused():
    with pytest.raises(ValueError, match="'p'"):
        collate([example("p", [])], Prompts({"p": prompt(4)}))


def test_imitate_ends_the_turn():
    encoder = PromptEncoder(build_tiny()[1])
    problem = demonstrations(1)[0]
    ids = imitate(problem, encoder).response_ids
    assert ids[-1] == encoder.tokenizer.eos_token_id and encoder.tokenizer.decode(ids[:-1]) == problem.response
    with pytest.raises(ValueError, match="'x'"):
        imitate(Problem(id="x", question="What "), encoder)
