"""Runs a family of the matrix: the engine's greedy tokens against those of `model.generate`, case by case."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path

import torch
from families import FixedPrompts
from family import FAMILIES, build, prompts
from transformers import ProcessorMixin

from mstar_engine.models.prompts import EncodedPrompt
from mstar_engine.models.tiny import build_tiny
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.types import Problem, SamplingParams

RUNS = {"n=1": (1, {}), "n=4": (4, {}), "n=4, as on a GPU": (4, dict(decode="fixed", packed_prefill=True))}
"""Responses a problem, and the engine's options: alone, as rows of a group, and in steps of fixed shape with prompts of
different lengths in one row."""
CLOSE = 5e-4
"""Of log-probabilities: rounding is far below, a position or mask that is off by one far above."""


def load_families() -> None:
    """Import the modules beside this one that add families."""
    for path in sorted(Path(__file__).parent.glob("*_families.py")):
        importlib.import_module(path.stem)


@functools.cache
def processor() -> ProcessorMixin:
    """A processor for prompts that are made already."""
    return build_tiny(0)[1]


def outcome(name: str, runs: dict[str, tuple[int, dict]] = RUNS) -> dict[tuple[str, str], str]:
    """By case and run: "" where every row's greedy tokens are those of `model.generate` and their log-probabilities
    are close; else what differs.

    ValueError where the engine refuses the family, AbsentError where transformers does not have it.
    """
    made = FAMILIES[name]()
    model = build(made)
    shown = prompts(made)
    found, expected, seen = {}, {}, set()
    for run, (n, options) in runs.items():
        engine = RolloutEngine(model, FixedPrompts(shown, processor()), **options)
        engine.proof.seen = seen  # one proof does for all, each run is compared with `generate` below
        engine.stop_ids = lambda: []  # random weights: compare full lengths
        expected = expected or {case: generated(engine, prompt, made.tokens) for case, prompt in shown.items()}
        params = SamplingParams(n=n, temperature=0.0, max_tokens=made.tokens)
        for group in engine.generate([Problem(id=case, question="") for case in shown], params):
            tokens, logprobs = expected[group.problem.id]
            found[group.problem.id, run] = ""
            for response in group.responses:
                if response.token_ids.tolist() != tokens:
                    found[group.problem.id, run] = f"tokens {response.token_ids.tolist()}, not {tokens}"
                else:
                    worst = float((torch.from_numpy(response.logprobs) - logprobs).abs().max())
                    if worst > CLOSE:
                        found[group.problem.id, run] = f"log-probabilities differ by {worst:.2g}"
    return found


def generated(engine: RolloutEngine, prompt: EncodedPrompt, tokens: int) -> tuple[list[int], torch.Tensor]:
    """The peer: transformers' own loop, with the same ids suppressed. Tokens and their log-probabilities."""
    ids = prompt.input_ids[None]
    inputs = dict(prompt.inputs) | {name: value[None] for name, value in prompt.token_inputs.items()}
    output = engine.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        suppress_tokens=engine.banned_ids.tolist(),
        return_dict_in_generate=True,
        output_scores=True,
        **inputs,
    )
    drawn = output.sequences[0, ids.shape[1] :]
    logprobs = torch.cat(output.scores).float().log_softmax(-1).gather(1, drawn[:, None])[:, 0]
    return drawn.tolist(), logprobs
