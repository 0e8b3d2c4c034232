"""What the problems are, and what is learned before the evolution.

One part of the configuration; `config.py` puts the whole together.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from mstar_engine.answer_type import EXTRACTION_RULES, VARIANTS
from mstar_engine.config_section import Count, CountOrOff, Rate, Share, Text, section
from mstar_engine.prompt_template import HINTED, check_template

ProblemSet = Literal["train", "unlabelled", "warmup", "validation", "test", "ood"]
ExtractionRule = Literal[*EXTRACTION_RULES]
Variant = Literal[*VARIANTS]


@section
class DataConfig:
    """The problems: the digits, or `files` of one's own.

    Digits: how many problems of each kind the task gives; `demonstrations` and `captions` teach the tiny model.
    `unlabelled_problems` are further training problems; only `prompts.unlabelled=oracle` may use their answers.

    Files: `train`, `unlabelled`, `warmup` (demonstrations), `validation`, `test` and `ood` are each a file (JSON, JSON
    Lines, Parquet, TSV), a folder of them, or a Hugging Face data set, read by `format` and `fields`; "format:path"
    names another format, "path#split" a split. What `validation` or `test` does not name is held out of `train`;
    `validation_problems`, `test_problems` and `ood_problems` bound these sets, `limit` the training set (0: all of it).
    `categories`: of a set that it names, those to keep, by its data set's names ({ood: [math, logical reasoning]}); of
    the others, what their formats keep. Images are looked up in `image_folder`, else beside the file; those of a set
    whose format stands in front of its path, always beside the file.
    `max_quarantined`: the share of a set's rows that may be flawed and set aside. `check_images`: "decode" reads every
    pixel once before the run, in a few threads, "header" only headers. `cache_dir` keeps images that rows hold as
    bytes, and up to `image_cache_bytes` of preprocessed images and encoded prompts (0: none).
    """

    dataset_name: Literal["digits", "files"] = "digits"
    train_problems: Count = 1536
    unlabelled_problems: CountOrOff = 1536
    validation_problems: Count = 256
    test_problems: Count = 512
    ood_problems: Count = 256
    demonstrations: Count = 2000
    warmup_captions: CountOrOff = 700
    train: str = ""
    unlabelled: str = ""
    warmup: str = ""
    validation: str = ""
    test: str = ""
    ood: str = ""
    format: Text = "rows"
    fields: dict[str, str] = Field(default_factory=dict)
    categories: dict[ProblemSet, Annotated[list[Text], Field(min_length=1)]] = Field(default_factory=dict)
    image_folder: str = ""
    limit: CountOrOff = 0
    max_quarantined: Share = 0.01
    check_images: Literal["decode", "header"] = "decode"
    max_image_bytes: Count = 64 << 20
    max_image_pixels: Count = 50_000_000
    cache_dir: Text = "~/.cache/mstar_engine"
    image_cache_bytes: CountOrOff = 64 << 30


@section
class AnswersConfig:
    """How answers are found and judged, of all problems that say what kind of answer they have. The others (the digits
    are such) keep exact match behind `# Answer`.

    `extract`: the rules that find an answer, in their order; none: each problem's own. "letter" is for choices: other
    answers are found by the rest, by their own rules where there is none. `variant`: whose rules judge;
    those of published numbers ("mathvista", "m3cot", "vlmevalkit") are lenient, and a policy that trains on them learns
    to exploit that. Answers that a variant has no rule for stay strict. LaTeX is compared by math-verify in
    `latex_workers` processes (0: one a core, 8 at most), at most `latex_timeout` seconds a comparison.
    """

    extract: list[ExtractionRule] = Field(default_factory=list)
    variant: Variant = "strict"
    latex_timeout: Rate = 5.0
    latex_workers: CountOrOff = 1

    @field_validator("extract")
    @classmethod
    def _each_once(cls, value: list[str]) -> list[str]:
        """A rule that found nothing finds nothing the second time."""
        if len(set(value)) != len(value):
            raise ValueError("rules of " + ", ".join(EXTRACTION_RULES) + ", each once")
        return value


@section
class PretrainConfig:
    """Fitting of the tiny model before the run proper: its image tower alone, then tower and language together, then
    the judging of readings.

    Small batches pay: at a rate of 3e-3, 250 steps of 32 read 95% of the tiles and 130 steps of 64 read 67%.
    """

    ground_steps: CountOrOff = 200
    ground_batch_size: Count = 32
    ground_learning_rate: Rate = 3e-3
    align_steps: CountOrOff = 300
    align_batch_size: Count = 32
    align_learning_rate: Rate = 2e-3
    check_steps: CountOrOff = 150
    check_batch_size: Count = 32
    check_learning_rate: Rate = 2e-3


GIVEN_AWAY = (
    *("given answer", "answer given", "answer is given", "answer was given", "as provided", "provided answer"),
    *("answer provided", "answer is provided", "answer was provided", "reference answer", "known answer"),
    *("answer is known", "answer was known", "known beforehand", "already know", "ground truth", "expected answer"),
    *("told that the answer", "told the answer", "match the answer", "matches the answer", "the hint"),
)
"""Phrases by which a response shows that it had been told the answer."""
SAMPLED_WARMUP = ("problems", "n", "temperature", "prompt", "refuse", "min_steps", "keep", "max_examples")
"""Keys of the warm-up that decide something with warmup.source=sampled only."""


@section
class WarmupConfig:
    """Supervised training that gives the policy its output format. `max_steps` -1: the epochs decide. A step learns
    from `per_device_train_batch_size` examples in one forward pass, `gradient_accumulation_steps` times.

    The default stops where the policy gets somewhat under half of the problems right: completions from a much weaker
    one say little about a step.

    `source`: what it imitates. "demonstrations" are worked responses that the data has (`data.warmup`). "sampled" is
    the paper's way, for any model that follows instructions (section 2): `n` responses to each of `problems` labelled
    training problems (0: all) are drawn at `temperature` on `prompt`, which has the places {question} and {answer}, the
    reference answer, and stands in place of `prompts.template`. Kept are those that end by themselves with the right
    answer, have at least `min_steps` steps before it and none of the phrases in `refuse`; at most `keep` different ones
    of a problem and `max_examples` in all (0: no limit). They are imitated on the prompt that the policy always gets.
    """

    source: Literal["demonstrations", "sampled"] = "demonstrations"
    problems: CountOrOff = 0
    n: Count = 4
    temperature: Rate = 1.0
    prompt: Text = HINTED
    refuse: list[Text] = Field(default_factory=lambda: list(GIVEN_AWAY))
    min_steps: CountOrOff = 1
    keep: Count = 1
    max_examples: CountOrOff = 0
    max_steps: Annotated[int, Field(ge=-1)] = 900
    num_train_epochs: Rate = 1.0
    per_device_train_batch_size: Count = 16
    gradient_accumulation_steps: Count = 1
    learning_rate: Rate = 8e-4
    lr_scheduler_type: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "linear"
    warmup_steps: CountOrOff = 10

    @field_validator("prompt")
    @classmethod
    def _question_and_answer(cls, value: str) -> str:
        """A hint is the question and its answer."""
        check_template(value, ("question", "answer"))
        return value

    @field_validator("keep")
    @classmethod
    def _no_more_than_sampled(cls, value: int, info: ValidationInfo) -> int:
        """Some of n."""
        if value > info.data.get("n", value):
            raise ValueError(f"at most warmup.n={info.data['n']}")
        return value
