"""Templates of prompts: what is refused, by key, and that nothing is searched for in what is put in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstar_engine.config_parse import config_hash, load_config
from mstar_engine.prompt_template import HINTED, PLAIN, check_template, fill
from mstar_engine.yaml_text import ConfigError

PLACES = ("question", "answer")


@given(st.text(), st.text())
def test_what_is_put_in_stays_as_it_is(question, answer):
    assert fill(PLAIN, question=question) == question
    assert fill("{{{answer}}} {question}{{}}", question=question, answer=answer) == f"{{{answer}}} {question}{{}}"


@pytest.mark.parametrize("question", ["{", "}}", "{answer}", r"\frac{1}{2}", "{0}", "{question!r}", r"\1 \g<0>"])
def test_braces_in_questions(question):
    check_template(HINTED, PLACES)
    filled = fill(HINTED, question=question, answer=question)
    assert filled.count(question) >= 2 and filled.startswith(question)


@pytest.mark.parametrize(
    ("key", "template", "says"),
    [
        ("prompts.template", "Think.", "a text with {question}; {question} missing"),
        ("prompts.template", "{questoin}", "not {questoin}; did you mean {question}?"),
        ("prompts.template", "{question} {answer}", "{question}, and not {answer}"),
        ("prompts.template", "{question} {", "(one alone at character 12)"),
        ("prompts.template", "}{question}", "(one alone at character 1)"),
        ("prompts.template", "{question}{}", "not {}"),
        ("prompts.template", "{{question}}", "{question} missing"),
        ("prompts.template", "<image>\n{question}", "no <image>"),
        ("prompts.system", "<image>", "no <image>"),
        ("warmup.prompt", "{question}", "{answer} missing"),
        ("warmup.prompt", "{answer} {gold}", "{question} and {answer}, and not {gold}"),
    ],
)
def test_refusals_name_the_key(key, template, says):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [f"{key}='{template}'" if "\n" not in template else f'{key}="<image>\\n{{question}}"'])
    message = str(caught.value)
    assert message.startswith(f"{key}=") and says in message and "\n" not in message


@pytest.mark.parametrize("raw", ["{question}", "{question} Think.", "'{question} Think.'", "Read: {question}"])
def test_on_the_command_line(raw):
    assert load_config(None, [f"prompts.template={raw}"]).prompts.template == raw.strip("'")


def test_identity():
    """A run that put its prompts plainly is the run that it was before there were templates; another is another."""
    plain = config_hash(load_config(None))
    assert config_hash(load_config(None, ["prompts.template={question}"])) == plain
    for other in ("prompts.template={question} Go.", "prompts.system=Think.", "warmup.source=sampled", "warmup.n=5"):
        assert config_hash(load_config(None, [other])) != plain


def test_keep_and_rows():
    for overrides, says in (
        (["warmup.keep=5"], "warmup.keep=5; allowed: at most warmup.n=4"),
        (["warmup.source=sampled", "warmup.n=65", "rollout.max_rows=64"], "warmup.n=65; allowed: at most rollout.max"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(None, overrides)
        assert str(caught.value).startswith(says)
