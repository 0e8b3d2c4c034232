"""Judged groups by hand: what the dynamics are computed from."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from mstar_engine.types import Group, Problem, Response

# Problems with as many responses each, a response as (answer, score, tokens).
SCORED = st.integers(1, 6).flatmap(
    lambda n: st.lists(
        st.lists(
            st.tuples(
                st.sampled_from(["1", "2", "3", None]), st.integers(0, 4).map(lambda i: i / 4), st.integers(1, 3)
            ),
            min_size=n,
            max_size=n,
        ),
        min_size=1,
        max_size=5,
    )
)


def make_response(
    sample: int,
    correct: bool | None,
    *,
    answer: str | None = None,
    score: float | None = None,
    tokens: int = 2,
    entropy: float = 0.5,
    text: str | None = None,
    reason: str = "stop",
) -> Response:
    nothing = np.zeros(tokens, np.float32)
    return Response(
        sample=sample,
        token_ids=nothing.astype(np.int32),
        text=str(sample) if text is None else text,
        logprobs=nothing,
        scaled_logprobs=nothing,
        filtered_logprobs=nothing,
        entropy=np.full(tokens, entropy, np.float32),
        finish_reason=reason,
        temperature=1.0,
        answer=answer,
        correct=correct,
        score=score,
    )


def group_of(responses: Sequence[Response], name: str = "p", gold: str | None = "1") -> Group:
    return Group(problem=Problem(id=name, question="?", gold=gold), responses=tuple(responses), prompt_length=1)


def make_group(correct: Sequence[bool | None], name: str = "p", **fields) -> Group:
    """A group with these verdicts, all else alike."""
    return group_of([make_response(sample, value, **fields) for sample, value in enumerate(correct)], name)


def score_group(rows: Sequence[tuple[str | None, float | None, int]], name: str = "p", gold: str = "1") -> Group:
    """A judged group from (answer, score, tokens)."""
    return group_of(
        [
            make_response(sample, answer == gold, answer=answer, score=score, tokens=tokens)
            for sample, (answer, score, tokens) in enumerate(rows)
        ],
        name,
        gold,
    )
