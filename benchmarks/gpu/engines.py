"""The rollout of `decode_work` in vLLM and SGLang, where they are installed, beside our engine on the same device.

They run the text model of the same sizes with dummy weights, n samples a prompt and prefix caching, and are given text
tokens in place of the image's: they encode no image, which favours them. They give tokens, we give log-probabilities
and the entropy besides. Their logits are flat and ours nearly so; rates count the tokens that each really made.
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from benchmarks.gpu.bench import PACKAGES, Bench, failed
from benchmarks.gpu.goals import Goal
from benchmarks.gpu.sizes import FIRST_TEXT_ID, QWEN_7B, ROLLOUT, TINY_MODEL, TINY_ROLLOUT, Rollout, Sizes, stop_ids
from benchmarks.gpu.suite_row import Skipped, SuiteRow
from benchmarks.harness import timed

MEMORY_SHARE = 0.8
Generate = Callable[[], int]
"""Runs the rollout once; returns the tokens it made."""


def rows(bench: Bench) -> Iterator[SuiteRow | Skipped]:
    """The engine that the part is named after, and ours before it; nothing where it is not installed."""
    (model, sizes), rollout = bench.sized(
        (("Qwen2.5-VL-7B", QWEN_7B), ROLLOUT), (("tiny model", TINY_MODEL), TINY_ROLLOUT)
    )
    what, name = f"{model} rollout, {rollout.name}", PACKAGES[bench.part]
    skipped = bench.missing(what, bench.part)
    if skipped is not None:
        yield skipped
        return
    ours = _ours(bench, sizes, rollout)
    try:
        peer = _rate(ENGINES[bench.part], sizes, rollout)
    except Exception as error:  # whatever a peer raises is the peer's
        yield failed(what, name, error, f"{ours:.0f} tokens/s")
        return
    yield bench.values(
        what, "RolloutEngine", name, ours, peer, "tokens/s", more_is_better=True, goal=Goal(least_ratio=1.0),
        note="the peer has text in place of the image",
    )  # fmt: skip


def _ours(bench: Bench, sizes: Sizes, rollout: Rollout) -> float:
    from benchmarks.gpu.decode_work import Generation  # here: where no engine is installed, no model is needed
    from benchmarks.gpu.qwen import ImagePrompts, build_model

    work = Generation(build_model(sizes, bench.device), ImagePrompts(sizes, rollout.prompt), rollout)
    return work.ours_rate(repeats=2)[0]


def _rate(make: Callable[[str, Sizes, Rollout], Generate], sizes: Sizes, rollout: Rollout) -> float:
    gc.collect()
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        text_config(sizes).save_pretrained(folder)
        generate = make(folder, sizes, rollout)
        generate()
        made: list[int] = []
        seconds = timed(lambda: made.append(generate()))
    return made[0] / seconds


def text_config(sizes: Sizes):
    """The language model alone: Qwen2, which Qwen2.5-VL is on text."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=sizes.vocabulary, hidden_size=sizes.hidden, intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=32_768, tie_word_embeddings=sizes.tied, architectures=["Qwen2ForCausalLM"],
        dtype="bfloat16",
    )  # fmt: skip


def _prompts(sizes: Sizes, rollout: Rollout) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    shape = (rollout.groups, rollout.prompt)
    return torch.randint(FIRST_TEXT_ID, sizes.image_id, shape, generator=generator).tolist()


def vllm_generate(folder: str | Path, sizes: Sizes, rollout: Rollout) -> Generate:
    """vLLM in this process, so that its memory goes when the process does."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder), skip_tokenizer_init=True, load_format="dummy", dtype="bfloat16", enable_prefix_caching=True,
        max_model_len=rollout.prompt + rollout.max_tokens, max_num_seqs=rollout.groups * rollout.samples,
        gpu_memory_utilization=MEMORY_SHARE,
    )  # fmt: skip
    params = SamplingParams(
        n=rollout.samples, temperature=1.0, max_tokens=rollout.max_tokens,
        stop_token_ids=list(stop_ids(sizes, rollout)), detokenize=False,
    )  # fmt: skip
    prompts = [{"prompt_token_ids": ids} for ids in _prompts(sizes, rollout)]

    def generate() -> int:
        found = llm.generate(prompts, params, use_tqdm=False)
        llm.reset_prefix_cache()
        return sum(len(output.token_ids) for one in found for output in one.outputs)

    return generate


def sglang_generate(folder: str | Path, sizes: Sizes, rollout: Rollout) -> Generate:
    """SGLang; its radix cache is on unless it is turned off."""
    import sglang

    engine = sglang.Engine(
        model_path=str(folder), skip_tokenizer_init=True, load_format="dummy", dtype="bfloat16",
        context_length=rollout.prompt + rollout.max_tokens + 8, mem_fraction_static=MEMORY_SHARE,
        max_running_requests=rollout.groups * rollout.samples,
    )  # fmt: skip
    params = {
        "n": rollout.samples, "temperature": 1.0, "max_new_tokens": rollout.max_tokens,
        "stop_token_ids": list(stop_ids(sizes, rollout)),
    }  # fmt: skip
    prompts = _prompts(sizes, rollout)

    def generate() -> int:
        found = engine.generate(input_ids=prompts, sampling_params=params)
        engine.flush_cache()
        return sum(one["meta_info"]["completion_tokens"] for one in found)

    return generate


ENGINES = {"vllm": vllm_generate, "sglang": sglang_generate}
