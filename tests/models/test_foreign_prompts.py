"""Processors and chat templates of other kinds: refused in one line that says what to change."""

import pytest
import torch
from PIL import Image

from mstar_engine.models.foreign_prompts import refuse_nested
from mstar_engine.models.prompts import PromptEncoder
from mstar_engine.models.tiny import build_tiny
from mstar_engine.types import Problem

ITEM = "{% if i['type'] == 'image' %}<image>{% else %}{{ i['text'] }}{% endif %}"
PARTS = "{% for i in m['content'] %}" + ITEM + "{% endfor %}"
NO_SYSTEM = "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
TEXT = Problem(id="a", question="What is 2 + 3?")
IMAGE = Problem(id="a", question="What is 2 + 3?", images=(Image.new("RGB", (24, 24)),))


def encoder(template: str, system: str | None = None) -> PromptEncoder:
    processor = build_tiny(0)[1]
    processor.chat_template = "{% for m in messages %}" + template + "{% endfor %}"
    return PromptEncoder(processor, system)


def test_a_template_without_a_system_role() -> None:
    assert encoder(NO_SYSTEM + PARTS).encode(IMAGE).inputs
    with pytest.raises(ValueError, match=r"problem 'a': LlavaProcessor .*not supported\); .*prompts.system empty"):
        encoder(NO_SYSTEM + PARTS, "Be brief.").encode(IMAGE)


@pytest.mark.parametrize("problem", [TEXT, IMAGE])
@pytest.mark.parametrize(
    "template",
    ["{{ m['role'] + ': ' + m['content'] }}", "{{ m['content'] }}", "{{ m['content'] | trim }}", "{{ m['content'] "],
)
def test_a_template_of_plain_text(template: str, problem: Problem) -> None:
    with pytest.raises(ValueError, match=r"LlavaProcessor .*; its processor must turn \{\"type\":") as caught:
        encoder(template).encode(problem)
    assert "\n" not in str(caught.value)


def test_a_question_may_quote_python() -> None:
    quoting = Problem(id="a", question="What is {'type': 'text'}?")
    assert len(encoder(PARTS).encode(quoting).input_ids)


def test_images_in_lists_are_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_nested({"pixel_values": torch.zeros(1), "sizes": [(2, 3)], "count": 1, "names": None})
    made = encoder(PARTS)
    render = made.processor.apply_chat_template

    def nested(*arguments, **options):
        outputs = render(*arguments, **options)
        outputs["pixel_values"] = [[outputs["pixel_values"][0]]]
        return outputs

    monkeypatch.setattr(made.processor, "apply_chat_template", nested)
    with pytest.raises(ValueError, match=r"problem 'a': .*pixel_values is a list with arrays in it"):
        made.encode(IMAGE)
