"""What a dry run says of prompts, from some of them."""

from mstar_engine.evolve.prompt_sample import sample_prompts
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.types import Problem


def test_the_longest_question_is_among_them():
    """Wherever it stands: a run would stop at it after hours."""
    encoder = PromptEncoder(build_tiny(0)[1])
    problems = [Problem(id=f"{i}", question="?" * (300 if i == 5 else 1 + i % 3), gold="1") for i in range(40)]
    found = sample_prompts(problems, encoder, None, 4)
    assert found.encoded == 5 and found.tokens.most == len(encoder.encode(problems[5]).input_ids) > 300
    assert sample_prompts(problems[:6], encoder, None, 6).encoded == 6  # and not twice
