"""The common forms of process reward models as rows of one table: where a step is scored, and by which head.

A form lays the steps of a response out as the model was trained to see them. The tokens of a step are the policy's own;
a form only puts fixed tokens between them, so nothing is ever tokenised again.
"""

from __future__ import annotations

from dataclasses import dataclass

HEADS = ("label_tokens", "two_class", "scalar")
TURN = "<turn>"
"""As `before`: the end of the user's turn and the head of the assistant's, in the words of the chat template."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrmForm:
    """How one kind of process reward model reads steps.

    `head`: "label_tokens" (two rows of the output head, softmax), "two_class" (a classifier of its own, softmax) or
    "scalar" (one row, sigmoid). `labels`: the positive and the negative label token, for "label_tokens".
    `before`: text put behind each step; the step is scored at its last token. Empty: at the last token of the step
    itself, as the policy wrote it. `after`: text between that and the next step. With `before`, white space at the end
    of a step goes. `question`: how the question is put to it, with `{question}`; `system` the system message.
    `weights`: checkpoint tensors of the head, first layer first, without ".weight" and ".bias"; ReLU lies between.
    `positive`: the class of right steps, for "two_class".
    """

    head: str
    labels: tuple[str, str] | None = None
    before: str = ""
    after: str = ""
    question: str = "{question}"
    system: str | None = None
    weights: tuple[str, ...] = ()
    positive: int = 1


FORMS = {
    # Ours: scored on the policy's own tokens, nothing inserted.
    "mstar": PrmForm(head="label_tokens", labels=("+", "-")),
    "mstar_two_class": PrmForm(head="two_class", weights=("score",)),
    "mstar_scalar": PrmForm(head="scalar", weights=("score",)),
    # Math-Shepherd (arXiv 2312.08935): a step tag behind each step, + against - there.
    "math_shepherd": PrmForm(head="label_tokens", labels=("+", "-"), before=" ки", after="\n"),
    # VisualPRM (arXiv 2503.10291): each step a user's turn, the assistant's answer is its label. Its model card's
    # system message is given to `load` as `system`.
    "visual_prm": PrmForm(
        head="label_tokens",
        labels=("+", "-"),
        before=TURN,
        after="+",
        question="### Question:\n{question}\n\n### Solution Process:\n",
    ),
    # Qwen2.5-Math-PRM (arXiv 2501.07301): a separator behind each step, two classes there, two layers.
    "qwen_prm": PrmForm(
        head="two_class",
        before="<extra_0>",
        weights=("score.0", "score.2"),
        system="Please reason step by step, and put your final answer within \\boxed{}.",
    ),
    # Skywork-o1-PRM: one value at the line break behind each step.
    "skywork": PrmForm(head="scalar", before="\n", weights=("v_head.summary",)),
    # TRL's PRMTrainer: a token classifier, read at the separator behind each step.
    "trl": PrmForm(head="two_class", before="\n", weights=("score",)),
}


def form_named(name: str, where: str) -> PrmForm:
    """A row of the table. ValueError, beginning with `where`, for a name that is not in it."""
    if name not in FORMS:
        raise ValueError(f"{where}: form {name!r}; allowed: {', '.join(FORMS)}")
    return FORMS[name]
