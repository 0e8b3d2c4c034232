"""The engine against `model.generate`, and against itself under every schedule."""

from functools import wraps

import numpy as np
import pytest
import torch
from families import CONFIGS, FixedPrompts, build, prompt
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from mstar_engine.models.tiny import build_tiny
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.types import Group, Problem, SamplingParams

MAX_TOKENS = 20
LENGTHS = (5, 16, 19, 40)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def processor():
    return build_tiny(0)[1]


def problems(count: int) -> list[Problem]:
    return [Problem(id=f"p{i}", question="") for i in range(count)]


def engine_for(family: str, processor, **options) -> RolloutEngine:
    model = build(family)
    prompts = {
        f"p{i}": prompt(family, LENGTHS[i % len(LENGTHS)], seed=i, image=i % 3 != 2) for i in range(2 * len(LENGTHS))
    }
    engine = RolloutEngine(model, FixedPrompts(prompts, processor), **options)
    engine.stop_ids = lambda: []  # random weights: compare full lengths
    return engine


def generate_greedy(engine: RolloutEngine, problem: Problem) -> list[int]:
    """The peer: transformers' own loop, with the same ids suppressed."""
    encoded = engine.encoder.encode(problem)
    inputs = dict(encoded.inputs) | {name: value[None] for name, value in encoded.token_inputs.items()}
    ids = encoded.input_ids[None]
    banned = engine.banned_ids.tolist()
    output = engine.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=MAX_TOKENS,
        do_sample=False,
        suppress_tokens=banned,
        **inputs,
    )
    return output[0, ids.shape[1] :].tolist()


def tokens(groups: list[Group]) -> dict[str, list[list[int]]]:
    return {group.problem.id: [r.token_ids.tolist() for r in group.responses] for group in groups}


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("n", [1, 4])
def test_greedy_tokens_equal_generate(family: str, n: int, processor) -> None:
    engine = engine_for(family, processor)
    asked = problems(len(LENGTHS))
    found = tokens(list(engine.generate(asked, SamplingParams(n=n, temperature=0.0, max_tokens=MAX_TOKENS))))
    for problem in asked:
        assert found[problem.id] == [generate_greedy(engine, problem)] * n


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_preemption_changes_nothing(family: str, processor) -> None:
    """A pool far too small for the worst case: rows are preempted, prompts dropped and computed again."""
    asked = problems(2 * len(LENGTHS))
    params = SamplingParams(n=3, temperature=1.0, max_tokens=MAX_TOKENS, seed=3)
    roomy = engine_for(family, processor, block_size=4)
    expected = tokens(list(roomy.generate(asked, params)))
    assert roomy.stats.preemptions == 0
    bytes_per_block = 4 * roomy.shape.bytes_per_token
    tight = engine_for(family, processor, block_size=4, kv_cache_memory=24 * bytes_per_block, policy="watermark")
    assert tokens(list(tight.generate(asked, params))) == expected
    assert tight.stats.preemptions > 0


def test_prompts_are_prefilled_once(processor) -> None:
    engine = engine_for("llava", processor)
    asked = problems(6)
    list(engine.generate(asked, SamplingParams(n=8, max_tokens=MAX_TOKENS)))
    ideal = sum(len(engine.encoder.encode(problem).input_ids) for problem in asked)
    assert engine.stats.prefill_tokens == engine.stats.prompt_tokens == ideal


def test_draws_do_not_depend_on_the_batch(processor) -> None:
    asked = problems(8)
    params = SamplingParams(n=4, temperature=1.0, max_tokens=MAX_TOKENS, seed=11)
    together = tokens(list(engine_for("llava", processor).generate(asked, params)))
    narrow = tokens(list(engine_for("llava", processor, max_rows=4).generate(list(reversed(asked)), params)))
    assert together == narrow
    rows = [row for rows in together.values() for row in rows]
    assert len({tuple(row) for row in rows}) > len(rows) // 2


def test_first_sample_adds_new_responses(processor) -> None:
    engine = engine_for("llava", processor)
    (eight,) = engine.generate(problems(1), SamplingParams(n=8, max_tokens=MAX_TOKENS, seed=5))
    (later,) = engine.generate(problems(1), SamplingParams(n=4, first_sample=4, max_tokens=MAX_TOKENS, seed=5))
    assert [r.token_ids.tolist() for r in later.responses] == [r.token_ids.tolist() for r in eight.responses[4:]]
    assert [r.sample for r in later.responses] == [4, 5, 6, 7]


def test_temperatures_can_differ_within_a_group(processor) -> None:
    engine = engine_for("llava", processor)
    degrees = np.array([0.0, 0.7, 1.3], np.float32)
    params = SamplingParams(n=3, max_tokens=MAX_TOKENS)
    (group,) = engine.generate(problems(1), params, temperatures=lambda _: degrees)
    assert group.responses[0].token_ids.tolist() == generate_greedy(engine, problems(1)[0])
    assert [round(r.temperature, 3) for r in group.responses] == [0.0, 0.7, 1.3]


def test_rows_of_one_sample_number_share_their_random_numbers(processor) -> None:
    """Arms are branches of one prompt: equal arms draw equal tokens, each arm what a call of its own draws."""
    engine = engine_for("llava", processor)
    asked, n = problems(4), 4
    arms = np.array([0.8, 0.4, 0.8, 1.5], np.float32)
    params = SamplingParams(n=len(arms) * n, max_tokens=MAX_TOKENS, seed=6)
    numbers = np.tile(np.arange(2, 2 + n, dtype=np.int32), len(arms))
    found = list(engine.generate(asked, params, temperatures=lambda _: arms.repeat(n), samples=lambda _: numbers))
    assert all([r.sample for r in group.responses] == numbers.tolist() for group in found)
    together = {name: [rows[i : i + n] for i in range(0, len(rows), n)] for name, rows in tokens(found).items()}
    for rows in together.values():
        assert rows[0] == rows[2] and rows[0] != rows[1] and rows[0] != rows[3]
    for arm, temperature in enumerate(arms):
        alone = SamplingParams(n=n, first_sample=2, temperature=float(temperature), max_tokens=MAX_TOKENS, seed=6)
        separate = tokens(list(engine.generate(asked, alone)))
        assert separate == {name: rows[arm] for name, rows in together.items()}


def test_common_random_numbers_make_neighbours_agree(processor) -> None:
    """The first tokens at temperatures 0.9 and 1.0 agree far more often with common numbers than without."""
    engine = engine_for("llava", processor)
    arms, n = np.array([0.9, 1.0], np.float32).repeat(100), 100
    params = SamplingParams(n=2 * n, max_tokens=1)
    shares = []
    for numbers in (np.tile(np.arange(n), 2), np.arange(2 * n)):
        (group,) = engine.generate(problems(1), params, temperatures=lambda _: arms, samples=lambda _, m=numbers: m)
        drawn = np.array([r.token_ids[0] for r in group.responses])
        shares.append(np.mean(drawn[:n] == drawn[n:]))
    assert shares[0] > 0.5 + shares[1]


def test_a_sweep_prefills_each_prompt_once(processor) -> None:
    """14 temperatures x 16 samples: 224 rows below one prompt, whether they share blocks with others or not."""
    grid = np.round(np.arange(0.3, 1.65, 0.1), 1)
    params = SamplingParams(n=14 * 16, max_tokens=4)
    for policy in ("auto", "watermark"):
        engine = engine_for("llava", processor, policy=policy)
        groups = list(
            engine.generate(
                problems(3),
                params,
                temperatures=lambda _: grid.repeat(16),
                samples=lambda _: np.tile(np.arange(16, dtype=np.int32), 14),
            )
        )
        ideal = sum(len(engine.encoder.encode(problem).input_ids) for problem in problems(3))
        assert engine.stats.prefill_tokens + engine.stats.extend_tokens == ideal
        assert all(len(group.responses) == 224 for group in groups)


def test_log_probabilities_are_the_models(processor) -> None:
    engine = engine_for("llava", processor)
    (group,) = engine.generate(problems(1), SamplingParams(n=2, temperature=0.8, max_tokens=MAX_TOKENS, seed=2))
    encoded = engine.encoder.encode(problems(1)[0])
    for response in group.responses:
        ids = torch.cat([encoded.input_ids, torch.from_numpy(response.token_ids).long()])[None]
        with torch.no_grad():
            logits = engine.model(input_ids=ids, **encoded.inputs).logits[0, len(encoded.input_ids) - 1 : -1]
        logits[:, engine.banned_ids.long()] = -torch.inf
        drawn = torch.from_numpy(response.token_ids).long()[:, None]
        for scale, found in ((1.0, response.logprobs), (0.8, response.scaled_logprobs)):
            expected = (logits / scale).log_softmax(-1).gather(1, drawn)[:, 0]
            torch.testing.assert_close(torch.from_numpy(found), expected, atol=2e-4, rtol=1e-4)


def test_image_tokens_are_never_drawn(processor) -> None:
    engine = engine_for("qwen2_5_vl", processor)
    banned = set(engine.banned_ids.tolist())
    assert {1, 2, 3, 6} <= banned
    groups = engine.generate(problems(4), SamplingParams(n=16, temperature=5.0, max_tokens=MAX_TOKENS))
    assert not banned & {int(token) for group in groups for r in group.responses for token in r.token_ids}


def test_ids_that_the_tokenizer_has_no_token_for_are_never_drawn() -> None:
    """Embeddings are padded: a policy that writes such an id has written no text."""
    words = Tokenizer(WordLevel({f"word{i}": i for i in range(60) if i != 50}, unk_token="word0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="word4")
    tokenizer.chat_template = "{{ messages }}"
    engine = engine_for("llava", tokenizer)
    assert engine.banned_ids.tolist() == [1, *range(60, 120)]
    groups = engine.generate(problems(4), SamplingParams(n=16, temperature=5.0, max_tokens=MAX_TOKENS))
    drawn = {int(token) for group in groups for response in group.responses for token in response.token_ids}
    assert max(drawn) < 60 and len(drawn) > 40


def test_groups_come_as_they_finish(processor) -> None:
    engine = engine_for("llava", processor)
    short = {f"p{i}": 2 + 5 * (3 - i) for i in range(4)}
    finished = [
        group.problem.id
        for group in engine.generate(problems(4), lambda p: SamplingParams(n=2, max_tokens=short[p.id]))
    ]
    assert finished == ["p3", "p2", "p1", "p0"]


def test_closing_early_leaves_the_model_as_it_was(processor) -> None:
    engine = engine_for("llava", processor)
    engine.model.train()
    attention = engine.model.config.get_text_config()._attn_implementation
    stream = engine.generate(problems(4), SamplingParams(n=2, max_tokens=4))
    next(stream)
    stream.close()
    assert engine.model.training
    assert engine.model.config.get_text_config()._attn_implementation == attention
    assert len(list(engine.generate(problems(4), SamplingParams(n=2, max_tokens=4)))) == 4


def test_new_weights_are_seen_at_once(processor) -> None:
    engine = engine_for("llava", processor)
    before = tokens(list(engine.generate(problems(2), SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS))))
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    after = tokens(list(engine.generate(problems(2), SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS))))
    assert after != before
    assert after["p0"] == [generate_greedy(engine, problems(2)[0])]


def test_a_long_prompt_behind_short_ones(processor) -> None:
    """The cache is sized by what is ahead; a problem that needs more is answered once the others are done."""
    engine = engine_for("llava", processor, max_rows=4, block_size=4)
    long = prompt("llava", 300, seed=99)
    engine.encoder.prompts["long"] = long
    asked = [*problems(6), Problem(id="long", question=""), *problems(8)[6:]]
    params = SamplingParams(n=4, temperature=0.0, max_tokens=MAX_TOKENS)
    found = tokens(list(engine.generate(asked, params)))
    assert set(found) == {problem.id for problem in asked}
    for name in ("p0", "long", "p7"):
        assert found[name] == [generate_greedy(engine, Problem(id=name, question=""))] * 4
    assert engine.stats.prefill_tokens == sum(len(engine.encoder.encode(problem).input_ids) for problem in asked)


def test_two_streams_on_one_engine(processor) -> None:
    engine = engine_for("llava", processor)
    params = SamplingParams(n=2, temperature=1.0, max_tokens=MAX_TOKENS, seed=4)
    expected = tokens(list(engine.generate(problems(4), params)))
    streams = zip(engine.generate(problems(4), params), engine.generate(problems(4)[::-1], params))
    pairs = list(streams)
    assert tokens([one for one, _ in pairs]) == tokens([other for _, other in pairs]) == expected


def test_each_problem_has_its_own_stop_tokens(processor) -> None:
    engine = engine_for("llava", processor)
    every = tuple(range(120))
    params = {"p0": (), "p1": every, "p2": (), "p3": every}
    groups = engine.generate(problems(4), lambda p: SamplingParams(n=2, max_tokens=8, stop_token_ids=params[p.id]))
    lengths = {group.problem.id: [len(r.token_ids) for r in group.responses] for group in groups}
    assert lengths == {"p0": [8, 8], "p1": [1, 1], "p2": [8, 8], "p3": [1, 1]}


def test_bad_logits_name_the_row(processor) -> None:
    engine = engine_for("llava", processor)
    with torch.no_grad():
        engine.model.get_output_embeddings().weight[50] = torch.nan
    with pytest.raises(ValueError, match=r"problem p0, sample 0, at step 0"):
        list(engine.generate(problems(2), SamplingParams(n=2, max_tokens=4)))


@pytest.mark.parametrize("decode", ["eager", "fixed"])
def test_out_of_memory_names_what_to_lower(decode: str, processor) -> None:
    engine = engine_for("llava", processor, decode=decode, max_rows=8)
    params = SamplingParams(n=2, max_tokens=4)
    calls: list[int] = []
    fails_at = [0]

    def exhausted(*_: object) -> None:
        calls.append(len(calls))
        if len(calls) == fails_at[0]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    list(engine.generate(problems(2), params))  # a family is proven once, by forwards of its own
    handle = engine.model.get_output_embeddings().register_forward_hook(exhausted)
    for failing, what in ((1, "a prefill of 2 prompts"), (5, "a decode step of 4 rows")):
        calls.clear()
        fails_at[0] = failing
        with pytest.raises(ValueError) as caught:
            list(engine.generate(problems(2), params))
        message = str(caught.value)
        assert "\n" not in message and message.startswith(f"rollout: out of memory in {what}"), message
        assert "rollout.kv_cache_memory" in message and "rollout.max_rows (8)" in message
    handle.remove()
    assert len(list(engine.generate(problems(2), params))) == 2  # nothing of the failed steps is left


def test_refusals_name_what_is_wrong(processor) -> None:
    engine = engine_for("llava", processor)
    with pytest.raises(ValueError, match="data set is empty"):
        list(engine.generate([], SamplingParams()))
    with pytest.raises(ValueError, match="n=0; allowed: 1 or more"):
        SamplingParams(n=0)
    with pytest.raises(ValueError, match=r"temperature=-1\.0"):
        SamplingParams(temperature=-1.0)
    with pytest.raises(ValueError, match="n=300 responses"):
        list(engine.generate(problems(1), SamplingParams(n=300)))
    small = engine_for("llava", processor, kv_cache_memory=3 * 16 * engine.shape.bytes_per_token)
    with pytest.raises(ValueError, match=r"problem p\d"):
        list(small.generate(problems(4), SamplingParams(n=1, max_tokens=MAX_TOKENS)))
    with pytest.raises(ValueError, match="problem p1"):
        list(engine.generate(problems(4), lambda p: SamplingParams(max_tokens=4 if p.id == "p0" else 10_000)))
    with pytest.raises(ValueError, match=r"problem p0: temperatures .*allowed: 0 or more"):
        list(engine.generate(problems(1), SamplingParams(), temperatures=lambda _: np.array([-1.0])))
    for numbers, said in (([0, 1], "shape"), ([-1], "0 or more"), ([0.5], "int32"), ([2**31], "int32")):
        with pytest.raises(ValueError, match=f"problem p0: sample numbers .*{said}"):
            list(engine.generate(problems(1), SamplingParams(), samples=lambda _, given=numbers: np.array(given)))
    with pytest.raises(ValueError, match="block_size=0"):
        RolloutEngine(engine.model, engine.encoder, block_size=0)


@pytest.mark.parametrize("kind", ["text alone", "pixel_values, image_grid_thw, mm_token_type_ids"])
def test_a_family_with_a_state_of_its_own_is_refused(kind: str, processor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that depend on what was fed before: nothing in the config says so."""
    engine = engine_for("qwen2_5_vl", processor)
    prepare = type(engine.model).prepare_inputs_for_generation

    @wraps(prepare)
    def shifted(self, input_ids, **named):
        inputs = prepare(self, input_ids, **named)
        if inputs["input_ids"].shape[1] == 1:
            inputs["position_ids"] = inputs["position_ids"] + 9
        return inputs

    monkeypatch.setattr(type(engine.model), "prepare_inputs_for_generation", shifted)
    asked = [Problem(id="p2" if kind == "text alone" else "p0", question="")]
    with pytest.raises(ValueError, match=f"'qwen2_5_vl' cannot be run .* behind a prompt of {kind}, .* token 1 differ"):
        list(engine.generate(asked, SamplingParams(n=2, max_tokens=4)))


def test_a_family_whose_generate_fails_is_run_unproven(processor, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    engine = engine_for("llava", processor)
    monkeypatch.setattr(type(engine.model), "generate", lambda *a, **k: (_ for _ in ()).throw(TypeError("no")))
    assert len(list(engine.generate(problems(1), SamplingParams(n=2, max_tokens=4)))) == 1
    assert "'llava' is run unproven" in caplog.text


def test_unsupported_families_are_refused_by_their_config() -> None:
    from transformers import AutoConfig

    from mstar_engine.models.compatibility import refuse_unsupported

    for name, reason in (
        ("mllama", "cross-attention"),
        ("qwen3_5", "linear_attention"),
        ("t5gemma2", "encoder-decoder"),
    ):
        try:
            config = AutoConfig.for_model(name)
        except (ValueError, KeyError):
            continue
        with pytest.raises(ValueError, match=reason):
            refuse_unsupported(config)
