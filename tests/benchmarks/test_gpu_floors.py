"""Floors against arithmetic done by hand, goals, and what the subjects' pieces claim about themselves."""

import time

import pytest
import torch
from transformers import AutoModelForImageTextToText

from benchmarks.gpu import floors
from benchmarks.gpu.goals import Goal
from benchmarks.gpu.qwen import ImagePrompts, build_model, config, problems, read_parameters, weight_bytes
from benchmarks.gpu.sizes import QWEN_3B, QWEN_7B, ROLLOUT, TINY_MODEL, stop_ids
from benchmarks.gpu.timing import Rotation, Timer, copy_bandwidth, input_sets
from benchmarks.gpu.tree_attention import SIZES, TINY, without_sharing
from benchmarks.tree_attention import build
from mstar_kernels.reference import gather_row

H200 = 4.3e12
CPU = torch.device("cpu")


def test_floors_are_those_of_the_arithmetic() -> None:
    assert floors.logits_bytes(256, 151_936) / H200 == pytest.approx(18.1e-6, rel=0.01)
    assert floors.logits_bytes(256, 151_936, reads=2) / H200 == pytest.approx(36.2e-6, rel=0.01)
    tokens = floors.tree_tokens(16, 16, 1500, 500)
    assert tokens == 152_000
    assert floors.layer_kv_bytes(tokens, QWEN_7B.kv_heads, QWEN_7B.head_dim) == pytest.approx(311e6, rel=0.01)
    assert floors.hidden_bytes(32_768, 3584) / H200 == pytest.approx(54.6e-6, rel=0.01)
    assert 1 / floors.computed_share(16, 1500, 500) == pytest.approx(3.37, rel=0.01)


@pytest.mark.parametrize(
    ("sizes", "billions", "kv_bytes"), [(QWEN_7B, 7.07, 57_344), (QWEN_3B, 3.09, 36_864)], ids=["7B", "3B"]
)
def test_published_sizes(sizes, billions: float, kv_bytes: int) -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config(sizes), dtype=torch.bfloat16)
    assert weight_bytes(model) == pytest.approx(2e9 * billions, rel=0.005)
    assert sizes.layers * floors.layer_kv_bytes(1, sizes.kv_heads, sizes.head_dim) == kv_bytes
    untied = len(read_parameters(model)) == len(list(model.base_model.language_model.parameters()))
    assert untied, "the embeddings' place is taken by the head, or they are the head"


def test_responses_end_between_128_and_512_in_the_mean() -> None:
    assert ROLLOUT.expected_length == pytest.approx((128 + 512) / 2, rel=0.01)
    assert len(stop_ids(QWEN_7B, ROLLOUT)) == 304


def test_logits_of_random_weights_are_flat_enough_for_stops() -> None:
    model = build_model(TINY_MODEL, CPU)
    prompt = ImagePrompts(TINY_MODEL, 24).encode(problems(1)[0])
    inputs = dict(prompt.inputs) | {name: value[None] for name, value in prompt.token_inputs.items()}
    with torch.no_grad():
        logits = model(input_ids=prompt.input_ids[None], **inputs).logits
    assert len(prompt.input_ids) == 24
    assert logits.softmax(-1).max() < 50 / TINY_MODEL.vocabulary


def test_goals() -> None:
    floor, ratio = Goal(most_floors=2.0), Goal(least_ratio=5.0)
    assert floor.met(18 / 36) and not floor.met(18 / 37)
    assert floor.verdict(18 / 30) == "met: 1.67x the floor"
    assert floor.verdict(18 / 45) == "missed by 25%: 2.50x the floor"
    assert ratio.met(5.0) and not ratio.met(4.9)
    assert ratio.verdict(4.0) == "missed by 20%: 4.00x"
    assert (str(floor), str(ratio)) == ("at most 2x the floor", "at least 5x")


def test_a_tree_without_sharing_has_every_row_as_it_was() -> None:
    shape = TINY["tiny"]
    _, k, v, tree, _ = build(shape)
    unshared = without_sharing(tree, shape)
    assert unshared.node_length.tolist() == [shape.prompt + shape.generated] * (shape.groups * shape.rows)
    for row in range(shape.groups * shape.rows):
        for ours, theirs in zip(gather_row(k, v, unshared, row)[:2], gather_row(k, v, tree, row)[:2]):
            torch.testing.assert_close(ours, theirs)


def test_shapes_of_the_attention_subject_are_those_of_the_models() -> None:
    for sizes, shape in zip((QWEN_7B, QWEN_3B), SIZES.values()):
        assert (shape.heads, shape.kv_heads, shape.head_dim) == (sizes.heads, sizes.kv_heads, sizes.head_dim)


def test_times_are_of_one_call() -> None:
    timer = Timer(CPU, 3)
    sleeps = Rotation("four", tuple(lambda: time.sleep(0.01) for _ in range(4)))
    (timing,) = timer.compare([timer.prepare(sleeps)])
    assert 0.01 <= timing.seconds < 0.04
    assert timing.how == "clock"


def test_input_sets_and_bandwidth() -> None:
    assert input_sets(1, CPU) == 2
    assert copy_bandwidth(CPU, 1 << 20) > 0
