"""Step scores of a prefix-shared batch against one forward a response, and every common form of checkpoint."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import pre_tokenizers
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

from mstar_engine.data.digits import digits_problems
from mstar_engine.models.loading import save_model
from mstar_engine.models.tiny import build_tiny
from mstar_engine.reward.forms import FORMS
from mstar_engine.reward.head import RewardHead, fresh_layers
from mstar_engine.reward.prm import ProcessRewardModel
from mstar_engine.reward.prm_checkpoint import HEAD, KEY, load_prm, refuse_other_processor
from mstar_engine.train.prm import new_prm, save_prm
from mstar_engine.types import Group, Problem, Response
from tests.rollout.families import VOCABULARY, FixedPrompts, build, prompt

TEXTS = ("red 7\n\nblue 5\n\n7 + 5 = 12\n\n# Answer 12", "5", "", "red 1\n\n# Answer 3", "5", "\n\n \n\n")


def response(sample: int, ids: list[int], text: str = "") -> Response:
    """A response of these tokens."""
    nothing = np.zeros(len(ids), np.float32)
    return Response(
        sample=sample, token_ids=np.asarray(ids, np.int32), text=text, logprobs=nothing, scaled_logprobs=nothing,
        filtered_logprobs=nothing, entropy=nothing, finish_reason="stop", temperature=1.0,
    )  # fmt: skip


def group_of(problem: Problem, tokenizer, texts=TEXTS) -> Group:
    """Responses with these texts, each with its end token."""
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    responses = tuple(response(i, one, text) for i, (one, text) in enumerate(zip(ids, texts, strict=True)))
    return Group(problem=problem, responses=responses, prompt_length=0)


# --- families ---


@pytest.fixture(scope="module")
def tiny():
    """The default model and its processor."""
    return build_tiny(0)


def family_prm(family: str, kind: str, processor, reduction: str = "min") -> ProcessRewardModel:
    """A model of the family with random weights and a head, on prompts made by hand."""
    model = build(family)
    layers = fresh_layers(kind, 32, seed=1, dtype=torch.float32, device=torch.device("cpu"))
    for layer in layers:
        layer.weight.data.mul_(10.0)
    head = RewardHead(kind, output=model.get_output_embeddings(), label_ids=(20, 21), layers=layers)
    form = {"label_tokens": "mstar", "two_class": "mstar_two_class", "scalar": "mstar_scalar"}[kind]
    prm = ProcessRewardModel(model, processor, head, FORMS[form], reduction=reduction)
    prompts = {"a": prompt(family, 21, 1), "b": prompt(family, 6, 2), "c": prompt(family, 21, 3, image=False)}
    prm.encoder = FixedPrompts(prompts, processor)
    return prm


@torch.no_grad()
def one_forward_each(prm: ProcessRewardModel, group: Group, ends: list[list[int]]) -> list[list[float]]:
    """The peer: prompt and response through the whole model, all logits, one response after the other."""
    found = []
    encoded = prm.encoder.encode(group.problem)
    for one, steps in zip(group.responses, ends, strict=True):
        ids = torch.cat([encoded.input_ids, torch.from_numpy(one.token_ids).long()])[None]
        zeros = torch.zeros(len(one.token_ids), dtype=torch.int64)
        tokens = {n: torch.cat([v, zeros.to(v.dtype)])[None] for n, v in encoded.token_inputs.items()}
        for module in prm.model.modules():
            if hasattr(module, "rope_deltas"):
                module.rope_deltas = None
        at = [len(encoded.input_ids) + end - 1 for end in steps]
        if prm.head.kind == "label_tokens":
            logits = prm.model(input_ids=ids, use_cache=False, **encoded.inputs, **tokens).logits[0, at]
            found.append(logits[:, list(prm.head.label_ids)].softmax(-1)[:, 0].tolist())
        else:
            hidden = prm.model.base_model(input_ids=ids, use_cache=False, **encoded.inputs, **tokens)
            logits = prm.head.layers[0](hidden.last_hidden_state[0, at])
            scores = logits[:, 0].sigmoid() if prm.head.kind == "scalar" else logits.softmax(-1)[:, 1]
            found.append(scores.tolist())
    return found


@pytest.mark.parametrize("kind", ["label_tokens", "two_class", "scalar"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3"])
def test_scores_equal_one_forward_a_response(family: str, kind: str, tiny) -> None:
    """fp32, to 1e-5: responses of one token, of one step, of many, of differing lengths; prompts of two lengths."""
    prm = family_prm(family, kind, tiny[1])
    rng = np.random.default_rng(5)
    shapes = [[(1, [1]), (9, [9]), (17, [3, 4, 17]), (33, [8, 16, 24, 32])], [(2, [1, 2])], [(5, [2, 5]), (1, [1])]]
    groups, ends = [], []
    for name, shape in zip("abc", shapes, strict=True):
        ids = [rng.integers(10, VOCABULARY, length).tolist() for length, _ in shape]
        responses = tuple(response(i, one) for i, one in enumerate(ids))
        groups.append(Group(problem=Problem(id=name, question=""), responses=responses, prompt_length=0))
        ends.append([steps for _, steps in shape])
    found = list(prm.score_groups(groups, ends))
    for group, steps, scores in zip(groups, ends, found, strict=True):
        wanted = one_forward_each(prm, group, steps)
        for ours, peer in zip(scores.step_scores, wanted, strict=True):
            np.testing.assert_allclose(ours, peer, atol=1e-5, rtol=0)
        assert scores.scores == tuple(min(steps) for steps in scores.step_scores)
        assert scores.weakest == tuple(steps.index(min(steps)) for steps in scores.step_scores)
    # Counted: a prompt once a group, a response once, up to the end of its last step.
    assert prm.stats.prompt_tokens == sum(len(prm.encoder.prompts[name].input_ids) for name in "abc")
    assert prm.stats.branch_tokens == sum(steps[-1] for group in ends for steps in group)


@pytest.mark.parametrize(
    ("reduction", "reduce"),
    [("min", min), ("mean", np.mean), ("product", np.prod), ("last", lambda steps: steps[-1])],
)
def test_reductions(reduction: str, reduce, tiny) -> None:
    """All of the common ones; the weakest step is the same under each."""
    prm = family_prm("llava", "scalar", tiny[1], reduction)
    one = Group(problem=Problem(id="a", question=""), responses=(response(0, [11, 30, 40, 50, 60]),), prompt_length=0)
    (scores,) = prm.score_groups([one], [[[1, 3, 5]]])
    assert scores.scores[0] == pytest.approx(reduce(scores.step_scores[0]), abs=1e-6)
    assert scores.weakest[0] == int(np.argmin(scores.step_scores[0]))


def test_equal_responses_are_computed_once_and_empty_ones_not_at_all(tiny) -> None:
    """A response without a step has nothing to be scored by: no step scores, the score 0."""
    model, processor = tiny
    head = RewardHead("scalar", layers=fresh_layers("scalar", 128, seed=0, dtype=torch.float32, device="cpu"))
    prm = ProcessRewardModel(model, processor, head, FORMS["mstar_scalar"])
    group = group_of(digits_problems("train", 1)[0], processor.tokenizer)
    scores = prm.score(group)
    assert scores.step_scores[2] == scores.step_scores[5] == ()
    assert (scores.scores[2], scores.weakest[2]) == (0.0, None)
    assert scores.step_scores[1] == scores.step_scores[4]
    assert [len(steps) for steps in scores.step_scores] == [4, 1, 0, 2, 1, 0]
    lengths = [len(group.responses[i].token_ids) - 1 for i in (0, 1, 3)]
    assert prm.stats.branch_tokens == sum(lengths), "the end token is read by nobody"
    (filled,) = prm.scored([group])
    assert [r.score for r in filled.responses] == list(scores.scores)
    nothing = Group(problem=group.problem, responses=(group.responses[2],), prompt_length=0)
    assert prm.score(nothing).scores == (0.0,)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.integers(10, 100), min_size=1, max_size=12), min_size=1, max_size=6), st.randoms())
def test_a_response_scores_the_same_in_any_company(ids: list[list[int]], rng) -> None:
    """Order and company of responses change nothing but the last bits."""
    prm = _SHARED.setdefault("prm", None) or _SHARED.setdefault("made", family_prm("llava", "scalar", build_tiny(0)[1]))
    ends = [sorted({rng.randint(1, len(one)), len(one)}) for one in ids]
    problem = Problem(id="a", question="")
    whole = Group(problem=problem, responses=tuple(response(i, one) for i, one in enumerate(ids)), prompt_length=0)
    (together,) = prm.score_groups([whole], [ends])
    for index, one in enumerate(ids):
        alone = Group(problem=problem, responses=(response(0, one),), prompt_length=0)
        (scores,) = prm.score_groups([alone], [[ends[index]]])
        np.testing.assert_allclose(scores.step_scores[0], together.step_scores[index], atol=1e-5)


_SHARED: dict[str, object] = {}


# --- the forms that checkpoints come in ---

CHAT = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def text_tokenizer(*specials: str, without: str = "") -> Qwen2Tokenizer:
    """Bytes as tokens, but for those in `without`; a chat template with turns that end."""
    alphabet = [one for one in sorted(pre_tokenizers.ByteLevel.alphabet()) if one not in without]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<end>", *alphabet])}
    made = Qwen2Tokenizer(vocab=vocabulary, merges=[], unk_token="<unk>", eos_token="<end>", pad_token="<end>",
                          additional_special_tokens=list(specials))  # fmt: skip
    made.chat_template = CHAT
    return made


SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)


def save_text_model(path: Path, config_class, model_class, tokenizer) -> torch.nn.Module:
    """A tiny text model with random weights, saved as people save theirs."""
    torch.manual_seed(0)
    model = model_class(config_class(vocab_size=len(tokenizer), **SMALL, tie_word_embeddings=False)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model


def add_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Put a head's tensors into the checkpoint's own file, as remote-code models have them."""
    file = path / "model.safetensors"
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})


STEPS = ("2 plus 2 is 4", "4 times 3 is 12", "so 12")
SOLUTION = "\n\n".join(STEPS)


@torch.no_grad()
def hidden_of(model, text_ids: list[int]) -> torch.Tensor:
    """Final hidden states of one plain forward."""
    return model.base_model(input_ids=torch.tensor([text_ids]), use_cache=False).last_hidden_state[0]


def test_math_shepherd(tmp_path: Path) -> None:
    """A step tag behind each step; + against - in the whole model's logits there."""
    tokenizer = text_tokenizer("ки")
    model = save_text_model(tmp_path, Qwen2Config, Qwen2ForCausalLM, tokenizer)
    prm = load_prm(tmp_path, form="math_shepherd", policy_processor=tokenizer)
    scores = prm.score(group_of(Problem(id="q", question="2+2*3?"), tokenizer, [SOLUTION])).step_scores[0]
    ids = tokenizer("[user]2+2*3?\n[assistant]" + " ки\n".join(STEPS) + " ки", add_special_tokens=False)["input_ids"]
    tag, plus, minus = (tokenizer.convert_tokens_to_ids(token) for token in ("ки", "+", "-"))
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    wanted = logits[[i for i, token in enumerate(ids) if token == tag]][:, [plus, minus]].softmax(-1)[:, 0]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)


def test_qwen_prm(tmp_path: Path) -> None:
    """Two layers and two classes at a separator token; found by the names of its tensors."""
    tokenizer = text_tokenizer("<extra_0>")
    model = save_text_model(tmp_path, Qwen2Config, Qwen2ForCausalLM, tokenizer)
    torch.manual_seed(1)
    layers = [torch.nn.Linear(32, 32), torch.nn.Linear(32, 2)]
    add_tensors(tmp_path, {f"score.{i}.{n}": p.data for i, one in ((0, layers[0]), (2, layers[1]))
                           for n, p in one.named_parameters()})  # fmt: skip
    prm = load_prm(tmp_path, policy_processor=tokenizer)
    scores = prm.score(group_of(Problem(id="q", question="2+2*3?"), tokenizer, [SOLUTION])).step_scores[0]
    text = f"[system]{FORMS['qwen_prm'].system}\n[user]2+2*3?\n[assistant]" + "<extra_0>".join(STEPS) + "<extra_0>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    tag = tokenizer.convert_tokens_to_ids("<extra_0>")
    with torch.no_grad():
        hidden = hidden_of(model, ids)[[i for i, token in enumerate(ids) if token == tag]]
        wanted = layers[1](layers[0](hidden).relu()).softmax(-1)[:, 1]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)


def test_skywork(tmp_path: Path) -> None:
    """One value, through a sigmoid, at the line break behind each step."""
    tokenizer = text_tokenizer()
    model = save_text_model(tmp_path, Qwen2Config, Qwen2ForCausalLM, tokenizer)
    torch.manual_seed(1)
    layer = torch.nn.Linear(32, 1)
    add_tensors(tmp_path, {"v_head.summary.weight": layer.weight.data, "v_head.summary.bias": layer.bias.data})
    prm = load_prm(tmp_path, policy_processor=tokenizer)
    scores = prm.score(group_of(Problem(id="q", question="2+2*3?"), tokenizer, [SOLUTION])).step_scores[0]
    begin = tokenizer("[user]2+2*3?\n[assistant]", add_special_tokens=False)["input_ids"]
    ids = tokenizer("\n".join(STEPS) + "\n", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        hidden = hidden_of(model, begin + ids)[len(begin) :]
        at = [i for i, token in enumerate(ids) if tokenizer.decode([token]) == "\n"]
        wanted = layer(hidden[at])[:, 0].sigmoid()
    np.testing.assert_allclose(scores, wanted, atol=1e-5)


def test_trl(tmp_path: Path) -> None:
    """A token classifier of one layer and two classes, read at the line break behind each step."""
    tokenizer = text_tokenizer()
    model = save_text_model(tmp_path, Qwen2Config, Qwen2ForCausalLM, tokenizer)
    torch.manual_seed(1)
    layer = torch.nn.Linear(32, 2)
    add_tensors(tmp_path, {"score.weight": layer.weight.data, "score.bias": layer.bias.data})
    prm = load_prm(tmp_path, policy_processor=tokenizer)
    scores = prm.score(group_of(Problem(id="q", question="2+2*3?"), tokenizer, [SOLUTION])).step_scores[0]
    begin = tokenizer("[user]2+2*3?\n[assistant]", add_special_tokens=False)["input_ids"]
    ids = tokenizer("\n".join(STEPS) + "\n", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        at = [i for i, token in enumerate(ids) if tokenizer.decode([token]) == "\n"]
        wanted = layer(hidden_of(model, begin + ids)[len(begin) :][at]).softmax(-1)[:, 1]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)


class Widest(TorchDispatchMode):
    """The most elements of any tensor made that has an axis of the vocabulary's size."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.made = vocabulary, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        known = {one.untyped_storage().data_ptr() for one in args if isinstance(one, torch.Tensor)}
        for one in result if isinstance(result, (tuple, list)) else (result,):
            new = isinstance(one, torch.Tensor) and one.untyped_storage().data_ptr() not in known
            if new and self.vocabulary in one.shape:
                self.made = max(self.made, one.numel())
        return result


def test_no_logits_of_the_vocabulary_exist(tiny) -> None:
    """No operation makes a tensor with an axis of the vocabulary's size; the whole model does."""
    model, processor = tiny
    vocabulary = model.config.text_config.vocab_size
    head = RewardHead("label_tokens", output=model.get_output_embeddings(), label_ids=(20, 21))
    prm = ProcessRewardModel(model, processor, head, FORMS["mstar"])
    group = group_of(digits_problems("train", 1)[0], processor.tokenizer)
    with Widest(vocabulary) as seen:
        prm.score(group)
    assert seen.made == 0
    with Widest(vocabulary) as seen, torch.no_grad():
        model(input_ids=torch.tensor([[20, 21]]), use_cache=False)
    assert seen.made == 2 * vocabulary


def test_a_model_that_gives_nan_is_named_by_problem_and_sample(tiny) -> None:
    """Not by its place in a batch."""
    model, processor = build_tiny(0)
    layers = fresh_layers("scalar", 128, seed=0, dtype=torch.float32, device="cpu")
    layers[0].weight.data[0, 0] = float("nan")
    prm = ProcessRewardModel(model, processor, RewardHead("scalar", layers=layers), FORMS["mstar_scalar"])
    groups = [group_of(problem, processor.tokenizer, ["", "5"]) for problem in digits_problems("train", 2)]
    with pytest.raises(ValueError, match=f"problem {groups[0].problem.id}, sample 1"):
        list(prm.score_groups(groups))
    with pytest.raises(ValueError, match=f"problem {groups[0].problem.id}, sample 1: step 0 ends at token 9"):
        list(prm.score_groups(groups[:1], [[[], [9]]]))


def test_visual_prm(tmp_path: Path, tiny) -> None:
    """Each step a user's turn, + or - the assistant's; image, question and the first step in the first turn."""
    model, processor = tiny
    save_model(model, processor, tmp_path)
    prm = load_prm(tmp_path, form="visual_prm", policy_processor=processor)
    problem = digits_problems("train", 1)[0]
    tokenizer = processor.tokenizer
    scores = prm.score(group_of(problem, tokenizer, TEXTS[:1])).step_scores[0]
    steps = TEXTS[0].split("\n\n")
    asked = f"### Question:\n{problem.question}\n\n### Solution Process:\n"
    text = f"<|user|><image>{asked}" + "<|assistant|>+<|end|><|user|>".join(steps) + "<|assistant|>"
    inputs = processor(text=[text], images=list(problem.images), return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    assistant = tokenizer.convert_tokens_to_ids("<|assistant|>")
    at = (inputs["input_ids"][0] == assistant).nonzero()[:, 0]
    wanted = logits[at][:, tokenizer.convert_tokens_to_ids(["+", "-"])].softmax(-1)[:, 0]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)


@pytest.mark.parametrize(("kind", "form"), [("mstar", "label_tokens"), ("mstar_two_class", ""), ("mstar_scalar", "")])
def test_ours_survives_the_disk(tmp_path: Path, tiny, kind: str, form: str) -> None:
    """Exported as a Hugging Face checkpoint, read back without being told anything: the same scores, to the bit."""
    model, processor = tiny
    save_model(model, processor, tmp_path / "policy")
    options = dict(delimiter="\n", max_steps=3, reduction="mean")
    prm = new_prm(tmp_path / "policy", kind, "here", seed=3, dtype="float32", **options)
    group = group_of(digits_problems("train", 1)[0], processor.tokenizer)
    before = prm.score(group)
    save_prm(tmp_path / "prm", prm, kind)
    again = load_prm(tmp_path / "prm", policy_processor=processor)
    assert again.score(group) == before
    assert (again.delimiter, again.max_steps, again.reduction) == ("\n", 3, "mean")
    assert (tmp_path / "prm" / HEAD).exists() == (kind != "mstar")
    assert not list((tmp_path / "prm").glob("*.bin"))
    loaded, info = type(model).from_pretrained(tmp_path / "prm", output_loading_info=True)
    assert getattr(loaded.config, KEY)["form"] == kind
    assert not info["missing_keys"] and not info["unexpected_keys"], "transformers alone can read it"


# --- what is refused ---


def test_refusals_name_both_sides(tmp_path: Path, tiny) -> None:
    """Another tokenizer or image processor, no label token, no form, no such form: one line each, with the path."""
    model, processor = tiny
    save_model(model, processor, tmp_path / "tiny")
    other = text_tokenizer("ки")
    with pytest.raises(ValueError, match=rf"process reward model {tmp_path}/tiny: its tokenizer .* differs from"):
        load_prm(tmp_path / "tiny", form="mstar", policy_processor=other)
    changed = build_tiny(0)[1]
    changed.image_processor.image_mean = [0.4, 0.5, 0.5]
    with pytest.raises(ValueError, match=r"image processor \(CLIPImageProcessorPil\) differs from .*image_m"):
        load_prm(tmp_path / "tiny", form="mstar", policy_processor=changed)
    with pytest.raises(ValueError, match=rf"{tmp_path}/tiny: neither config.json nor its tensors tell its form"):
        load_prm(tmp_path / "tiny")
    with pytest.raises(ValueError, match=r"form 'qwen'; allowed: mstar, .*skywork"):
        load_prm(tmp_path / "tiny", form="qwen")
    with pytest.raises(ValueError, match=rf"{tmp_path}/tiny: no tensor score.0.weight"):
        load_prm(tmp_path / "tiny", form="qwen_prm")
    with pytest.raises(ValueError, match="no checkpoint there"):
        load_prm(tmp_path / "nothing")

    save_text_model(tmp_path / "fewer", Qwen2Config, Qwen2ForCausalLM, text_tokenizer("ки", without="-"))
    with pytest.raises(ValueError, match=r"fewer: its tokenizer has no single token for label '-'"):
        load_prm(tmp_path / "fewer", form="math_shepherd")

    save_text_model(tmp_path / "wide", Qwen2Config, Qwen2ForCausalLM, text_tokenizer())
    add_tensors(tmp_path / "wide", {"v_head.summary.weight": torch.zeros(1, 48)})
    with pytest.raises(ValueError, match=r"wide: its head maps 48 to 1; allowed: 32 .* to 1"):
        load_prm(tmp_path / "wide")


def test_a_text_model_refuses_images_by_name(tmp_path: Path) -> None:
    """It would score what it cannot see."""
    tokenizer = text_tokenizer("ки")
    save_text_model(tmp_path, Qwen2Config, Qwen2ForCausalLM, tokenizer)
    prm = load_prm(tmp_path, form="math_shepherd")
    problem = digits_problems("train", 1)[0]
    with pytest.raises(ValueError, match=f"problem '{problem.id}' has images; this process reward model reads text"):
        prm.score(group_of(problem, tokenizer, ["1"]))


def test_a_larger_vocabulary_is_no_difference(tiny) -> None:
    """A process reward model may know a step tag besides the policy's tokens; a moved token is a difference."""
    processor = tiny[1]
    refuse_other_processor(processor, processor, "here")
    more = build_tiny(0)[1]
    more.tokenizer.add_tokens(["<step>"])
    refuse_other_processor(more, processor, "here")
    with pytest.raises(ValueError, match=r"here: its tokenizer .* 1 tokens, the first '<step>'"):
        refuse_other_processor(processor, more, "here")
