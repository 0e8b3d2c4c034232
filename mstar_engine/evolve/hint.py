"""Prompts that hold the reference answer: by them a model writes solutions that a policy can learn from (section 2).

The problem itself stays as it is, hint and all the rest are the encoder's: what was sampled on a hinted prompt belongs
to the ordinary problem, and whoever encodes that sees no hint.
"""

from __future__ import annotations

from mstar_engine.config import RunConfig
from mstar_engine.data.files import limits_of, preprocessed
from mstar_engine.data.reader import IMAGE_TOKENS
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.prompt_template import fill
from mstar_engine.reward.golds import gold_of
from mstar_engine.types import Problem


class HintedPrompts(PromptEncoder):
    """Encodes problems with their reference answers: `template` has the places {question} and {answer}."""

    @classmethod
    def of(cls, processor, config: RunConfig) -> HintedPrompts:
        """Those of a run's warm-up, with the system message of its ordinary prompts. They are used once each."""
        return cls(
            processor,
            config.prompts.system or None,
            template=config.warmup.prompt,
            cache_bytes=0,
            images=preprocessed(config.data),
            limits=limits_of(config.data),
        )

    def text(self, problem: Problem) -> str:
        """What the user says beside the images. The problem must be one that `can_hint`."""
        answer = shown_answer(problem)
        assert answer is not None
        return fill(self.template, question=problem.question, answer=answer)


def shown_answer(problem: Problem) -> str | None:
    """The reference answer as a model can use it: of a choice letter and text, "(B) a triangle"; None without one."""
    gold, kind = (problem.gold or "").strip(), problem.answer_type
    if not gold:
        return None
    if kind is None or kind.kind != "choice" or not kind.choices:
        return gold
    letter = gold_of(gold, kind).key
    return f"({letter}) {kind.choices[ord(letter) - ord('A')].strip()}"


def can_hint(problem: Problem) -> bool:
    """Whether there is an answer, and one that claims no image of its own in the prompt."""
    answer = shown_answer(problem)
    return answer is not None and "<image>" not in answer and IMAGE_TOKENS.search(answer) is None
