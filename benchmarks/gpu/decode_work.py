"""The rollout that decode speed is measured on, and the engine and `model.generate` doing it.

Groups of responses to image prompts; a response ends at one of a set of stop tokens or at `max_tokens`, so lengths are
spread as in a real rollout, and a static batch waits for its longest row. Both sides have the same model object, and
count the tokens up to the stop. Encoded prompts lie on the host, as a processor leaves them.
"""

from __future__ import annotations

import statistics
import time

import torch
from transformers import PreTrainedModel

from benchmarks.gpu.qwen import ImagePrompts, problems
from benchmarks.gpu.sizes import Rollout, stop_ids
from benchmarks.gpu.timing import Timing, summary
from benchmarks.harness import timed
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout.runner import stack_inputs
from mstar_engine.types import SamplingParams


class Generation:
    """One rollout on one model. `produced` is the number of tokens of the last call of a side."""

    def __init__(
        self, model: PreTrainedModel, prompts: ImagePrompts, rollout: Rollout, torch_compile: bool = False
    ) -> None:
        self.model = model
        self.rollout = rollout
        self.prompts = prompts
        self.problems = problems(rollout.groups)
        for problem in self.problems:
            prompts.encode(problem)  # made before anything is timed
        rows = rollout.groups * rollout.samples
        self.engine = RolloutEngine(model, prompts, max_rows=rows, image_cache_memory=0, torch_compile=torch_compile)
        self.stop_ids = stop_ids(prompts.sizes, rollout)
        self.produced = 0

    def ours(self) -> None:
        """The engine, images encoded anew."""
        self.run_engine(self.rollout.max_tokens, self.stop_ids)

    def run_engine(self, max_tokens: int, stop_ids: tuple[int, ...] = ()) -> None:
        """The engine with responses of at most `max_tokens`."""
        params = SamplingParams(n=self.rollout.samples, max_tokens=max_tokens, seed=1, stop_token_ids=stop_ids)
        groups = list(self.engine.generate(self.problems, params))
        self.produced = sum(len(response.token_ids) for group in groups for response in group.responses)

    def peer(self, groups: int, max_tokens: int | None = None) -> None:
        """transformers, `groups` prompts in one batch."""
        torch.manual_seed(1)
        encoded = [self.prompts.encode(problem) for problem in self.problems[:groups]]
        pad = self.prompts.sizes.image_id
        output = self.model.generate(
            **stack_inputs(encoded, self.model.device),
            do_sample=True,
            top_k=0,
            num_return_sequences=self.rollout.samples,
            max_new_tokens=max_tokens or self.rollout.max_tokens,
            eos_token_id=[*self.stop_ids, *self.engine.stop_ids()],
            pad_token_id=pad,
            suppress_tokens=[pad],
        )
        self.produced = int((output[:, self.rollout.prompt :] != pad).sum())

    def step_time(self, repeats: int) -> Timing:
        """A decode step with all rows live: the difference of two runs that differ in length alone."""
        short, long = self.rollout.short, self.rollout.long
        self.run_engine(long)  # takes the larger cache, captures every shape
        differences = []
        for _ in range(repeats):
            seconds = [timed(lambda tokens=tokens: self.run_engine(tokens)) for tokens in (short, long)]
            differences.append((seconds[1] - seconds[0]) / (long - short))
        return summary(differences, "clock")

    def ours_rate(self, repeats: int) -> tuple[float, float]:
        """Tokens per second of the engine, the median, and the seconds of the first run, which captures the graphs."""
        begin = time.perf_counter()
        self.ours()
        first = time.perf_counter() - begin
        rates = []
        for _ in range(repeats):
            seconds = timed(self.ours)
            rates.append(self.produced / seconds)
        return statistics.median(rates), first

    def peer_rate(self) -> tuple[float, int]:
        """Tokens per second of `generate`, and its rows: the most, halving, that its memory holds."""
        self.engine.release()
        self.peer(1, max_tokens=2)
        groups = self.rollout.groups
        while True:
            try:
                seconds = timed(lambda groups=groups: self.peer(groups))
                return self.produced / seconds, groups * self.rollout.samples
            except torch.OutOfMemoryError:
                if groups == 1:
                    raise
            groups //= 2
            torch.cuda.empty_cache()
