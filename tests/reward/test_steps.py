"""Steps: spans tile the text, ends lie on the generated tokens and agree with the spans, whatever the tokenizer."""

import functools
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from mstar_engine.models.vocabulary import END, IMAGE, PAD, build_tokenizer
from mstar_engine.reward.offsets import token_spans
from mstar_engine.reward.steps import check_labels, check_steps, check_texts, step_ends, step_spans, step_texts

MARKER = "<step>"
DELIMITERS = st.sampled_from(["\n\n", "\n", MARKER, ". ", "ab"])
PIECES = [
    "Read ",
    "tile",
    "a",
    "b",
    "ab",
    " ",
    "\n",
    "\n\n",
    "\n\n\n",
    MARKER,
    ". ",
    "7",
    "é",
    "中",
    "🙂",
    "\u00a0",
    "�",
]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=14).map("".join)


@functools.cache
def tiny() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@functools.cache
def byte_level(merges: int = 150) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer that splits nothing beforehand: its tokens straddle anything, characters included."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    corpus = ["Read 7. 中文\n\n 你好 tile🙂\n\nab ab\n\nRead", "x.\n\n中 é.\n\n🙂🙃 7\n ab\n\n\n\n中国\n7. "] * 4
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = [END, MARKER]
    trainer = trainers.BpeTrainer(vocab_size=258 + merges, initial_alphabet=alphabet, special_tokens=specials)
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, extra_special_tokens={"step_token": MARKER}
    )


@functools.cache
def byte_fallback() -> PreTrainedTokenizerFast:
    """In the manner of SentencePiece. A bad byte spoils the characters of the bytes before it."""
    names = ["<0xE4>", "<0xBD>", "<0xA0>", "<0xFF>", "▁a", "b", "<0x0A>", END]
    tokenizer = Tokenizer(BPE({name: i for i, name in enumerate(names)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


class Slow:
    """A tokenizer without a fast backend, as far as steps use it."""

    is_fast = False

    def __init__(self, fast: PreTrainedTokenizerFast) -> None:
        self.decode, self.all_special_ids = fast.decode, fast.all_special_ids


def encode(text: str, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def decoded(ids, tokenizer: PreTrainedTokenizerFast) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def token_bytes(token: int) -> bytes:
    """What a token of the byte-level tokenizer writes, from GPT-2's table of byte characters."""
    name = byte_level().convert_ids_to_tokens(token)
    if name in (END, MARKER):
        return name.encode()
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in plain} | {
        chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in plain)
    }
    return bytes(table[character] for character in name)


def spans_from_bytes(ids) -> list[tuple[int, int]]:
    """The characters that each token of a valid text touches, from the bytes alone."""
    pieces = [token_bytes(token) for token in ids]
    text = b"".join(pieces).decode()
    of_byte = [i for i, character in enumerate(text) for _ in character.encode()]
    spans, at = [], 0
    for piece in pieces:
        spans.append((of_byte[at], of_byte[at + len(piece) - 1] + 1))
        at += len(piece)
    return spans


# Spans


@pytest.mark.parametrize(
    ("text", "delimiter", "steps"),
    [
        ("", "\n\n", []),
        (" \n\n\t\n", "\n\n", []),
        ("a", "\n\n", ["a"]),
        ("a\n\nb", "\n\n", ["a\n\n", "b"]),
        ("a\nb\n\nc\n", "\n\n", ["a\nb\n\n", "c\n"]),
        ("a\nb\n\nc\n", "\n", ["a\n", "b\n\n", "c\n"]),
        ("\n\na\n\n \n\n\n  b\n\n", "\n\n", ["\n\na\n\n \n\n\n  ", "b\n\n"]),
        ("a\n\n\nb", "\n\n", ["a\n\n\n", "b"]),
        ("a <step> b <step>", MARKER, ["a <step> ", "b <step>"]),
        ("<step>a<step><step>b", MARKER, ["<step>a<step><step>", "b"]),
        ("<step> <step>", MARKER, []),
        ("a\u2028\u00a0b", "\u2028", ["a\u2028\u00a0", "b"]),
        ("xaaay", "aa", ["xaa", "ay"]),
    ],
)
def test_spans_by_hand(text, delimiter, steps):
    assert [text[a:b] for a, b in step_spans(text, delimiter)] == steps


@given(TEXTS, DELIMITERS)
@settings(deadline=None)
def test_spans_tile_the_text(text, delimiter):
    spans = step_spans(text, delimiter)
    assert bool(spans) == bool(text.replace(delimiter, "").strip()) or delimiter in text.replace(delimiter, "")
    assert [a for a, _ in spans] == [0, *(b for _, b in spans)][: len(spans)]
    assert not spans or spans[-1][1] == len(text)
    for a, b in spans:
        assert text[a:b].strip() and len(step_spans(text[a:b], delimiter)) == 1
    for _, b in spans[:-1]:
        assert not text[b].isspace() and text[:b].rstrip().endswith(delimiter.rstrip())


@given(TEXTS, DELIMITERS, st.integers(1, 8))
@settings(deadline=None)
def test_merging_is_even(text, delimiter, most):
    every, merged = step_spans(text, delimiter), step_spans(text, delimiter, most)
    assert len(merged) == min(most, len(every))
    assert {b for _, b in merged} <= {b for _, b in every}
    sizes = [sum(a <= c < b for c, _ in every) for a, b in merged]
    assert sum(sizes) == len(every) and max(sizes, default=0) - min(sizes, default=0) <= 1


def test_merging_by_hand():
    assert step_spans("a\nb\nc\nd\ne", "\n", 2) == [(0, 4), (4, 9)]
    assert step_spans("a\nb\nc\nd\ne", "\n", 1) == [(0, 9)]
    assert step_spans("a\nb", "\n", 5) == step_spans("a\nb", "\n")


def test_bad_arguments():
    with pytest.raises(ValueError, match="delimiter=''"):
        step_spans("a", "")
    with pytest.raises(ValueError, match="max_steps=-1"):
        step_spans("a", "\n", -1)


# Tokens


@given(TEXTS)
@settings(deadline=None)
def test_token_spans_are_the_bytes(text):
    assert token_spans(encode(text, byte_level()), byte_level())[0] == text
    text = text.replace("�", "")  # Decoding cannot tell it from an unfinished character.
    ids = encode(text, byte_level())
    assert token_spans(ids, byte_level()) == (text, spans_from_bytes(ids))


IDS = st.lists(st.integers(0, 257) | st.integers(0, 999), max_size=30)


@given(IDS)
@settings(deadline=None)
def test_any_ids(ids):
    """Ids that no encoder would give: broken characters, special tokens anywhere. Fast and slow paths agree."""
    for tokenizer in (tiny(), byte_level(), byte_fallback()):
        known = [i % len(tokenizer) for i in ids]
        text, spans = token_spans(known, tokenizer)
        assert text == decoded(known, tokenizer) and (text, spans) == token_spans(known, Slow(tokenizer))
        assert len(spans) == len(known) and all(a <= b for a, b in spans)
        assert all(a <= c and b <= d for (a, b), (c, d) in pairwise(spans))
        assert not known or (spans[0][0], spans[-1][1]) == (0, len(text))
        for most in (0, 2):
            ends = step_ends(known, tokenizer, "\n", most)
            assert ends == step_ends(np.array(known, np.int32), Slow(tokenizer), "\n", most)
            if ends:
                check_steps(ends, len(known), "here")
                texts = step_texts(known, tokenizer, ends)
                check_texts(texts, "here")
                assert "".join(texts) == decoded(known[: ends[-1]], tokenizer)
                assert not most or len(ends) <= most


def test_tokens_that_take_back_text():
    fast = byte_fallback()
    text, spans = token_spans([4, 0, 1, 2, 3, 4], fast)
    assert (text, spans) == ("a���� a", [(0, 1), (1, 2), (2, 3), (3, 3), (3, 5), (5, 7)])
    assert (text, spans) == token_spans([4, 0, 1, 2, 3, 4], Slow(fast))
    assert token_spans([4, 0, 1, 2, 4], fast) == ("a你 a", [(0, 1), (1, 2), (1, 2), (1, 2), (2, 4)])


# Ends


@given(TEXTS, DELIMITERS, st.integers(0, 4))
@settings(deadline=None, max_examples=300)
def test_ends_agree_with_spans(text, delimiter, most):
    """A token lies in the step of its first visible character; steps left without content merge."""
    text = text.replace("�", "")  # Decoding cannot tell it from an unfinished character.
    ids = encode(text, byte_level())
    while ids and token_bytes(ids[-1]) == END.encode():
        ids.pop()
    if delimiter != MARKER:
        while ids and token_bytes(ids[-1]) == MARKER.encode():
            ids.pop()
    text = decoded(ids, byte_level())
    expected, spans = [], spans_from_bytes(ids)
    for begin, end in step_spans(text, delimiter, most):
        held = []
        for token, (a, b) in enumerate(spans):
            visible = [i for i in range(a, b) if not text[i].isspace()]
            if begin <= (visible[0] if visible else a) < end:
                held.append(token)
        content = text[spans[held[0]][0] : spans[held[-1]][1]].replace(delimiter, "") if held else ""
        if content.strip() or not expected:
            expected.append(held[-1] + 1)
        elif held:
            expected[-1] = held[-1] + 1
    assert step_ends(ids, byte_level(), delimiter, most) == tuple(expected)
    assert step_ends([*ids, byte_level().eos_token_id], byte_level(), delimiter, most) == tuple(expected)


WORDS = st.lists(st.sampled_from(["Read ", "tile ", "red ", " + ", "4", "# Answer ", "\n", "\n\n", " "]), max_size=20)


@given(WORDS, st.sampled_from(["\n\n", "\n"]), st.integers(0, 4), st.sampled_from([[], [END], [END, PAD, PAD]]))
@settings(deadline=None)
def test_the_tiny_tokenizer_has_every_step(words, delimiter, most, tail):
    text, tokenizer = "".join(words), tiny()
    ids = encode(text, tokenizer)
    ends = step_ends(ids + tokenizer.convert_tokens_to_ids(tail), tokenizer, delimiter, most)
    spans = step_spans(text, delimiter, most)
    assert len(ends) == len(spans)
    texts = step_texts(ids, tokenizer, ends)
    assert [t.strip() for t in texts] == [text[a:b].strip() for a, b in spans]
    assert not ends or ends[-1] == len(ids)


def test_white_space_in_front_of_a_word_goes_with_the_word():
    tokenizer = byte_level(0)
    assert step_ends(encode("a\n\n b", tokenizer), tokenizer) == (4, 5)
    tokenizer = tiny()
    ids = tokenizer.convert_tokens_to_ids(["4", "\n", "\n\n", " + ", "2", "\n\n", END])
    assert step_ends(ids, tokenizer) == (3, 6)
    assert step_texts(ids, tokenizer, (3, 6)) == ["4\n\n\n", " + 2\n\n"]


def test_tokens_that_straddle_a_boundary():
    ids = [byte_level().convert_tokens_to_ids(name) for name in ("x", ".ĊĊ", "7", "ĊĊ", "Ċ", "a")]
    assert None not in ids
    assert step_ends(ids, byte_level()) == (2, 5, 6)
    # Two boundaries in one token: the step between them has no token and is gone.
    tokenizer = Tokenizer(BPE({"a": 0, "\n\nb\n\n": 1, "c": 2, "\n\nd": 3, "\n\n": 4, ".\n\nd": 5}, []))
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert step_spans(decoded([0, 1, 2], fast)) == [(0, 3), (3, 6), (6, 7)]
    assert step_ends([0, 1, 2], fast) == (1, 2, 3)
    assert step_ends([0, 3, 4, 2], fast) == (1, 3, 4)
    # Of the step "d", only its blank line has a token of its own: it joins the step before.
    assert step_ends([0, 5, 4, 2], fast) == (3, 4)
    assert step_ends([4, 5, 4, 2], fast) == (3, 4)
    # An id without text ends with the step that it follows.
    assert step_ends([0, 4, 2, 99, 99], fast) == (2, 5)


def test_special_tokens():
    tokenizer = tiny()
    ids = tokenizer.convert_tokens_to_ids
    # At the end they belong to no step; elsewhere they are text.
    assert step_ends(ids(["4", "\n\n", "2", END, PAD]), tokenizer) == (2, 3)
    assert step_ends(ids(["4", "\n\n", IMAGE, "\n\n", "2", END]), tokenizer) == (2, 4, 5)
    assert step_ends(ids([END, PAD]), tokenizer) == step_ends([], tokenizer) == ()
    # A marker that is a special token ends the last step rather than the response.
    tokenizer = byte_level()
    ids = [*encode("7 ", tokenizer), tokenizer.convert_tokens_to_ids(MARKER), *encode("ab", tokenizer)]
    marked = [*ids, tokenizer.convert_tokens_to_ids(MARKER)]
    assert step_ends([*marked, tokenizer.eos_token_id], tokenizer, MARKER) == (
        len(ids) - len(encode("ab", tokenizer)),
        len(marked),
    )
    assert step_ends([*marked, tokenizer.eos_token_id], tokenizer, "\n\n") == (len(ids),)


# Checks


def test_check_steps():
    check_steps((1, 3, 7), 7, "here")
    for ends, message in (
        ((), "no step"),
        ((0, 3), "step 0 ends at token 0; allowed: 1 to 7"),
        ((3, 3), "step 1 ends at token 3; allowed: 4 to 7"),
        ((3, 2), "step 1 ends at token 2; allowed: 4 to 7"),
        ((3, 8), "step 1 ends at token 8; allowed: 4 to 7"),
    ):
        with pytest.raises(ValueError, match=f"^data/prm.parquet, row 17: {message}"):
            check_steps(ends, 7, "data/prm.parquet, row 17")


def test_check_labels():
    check_labels([0, 0.5, True], (1, 3, 7), "here")
    check_labels(np.array([0.0, 1.0], np.float32), (1, 3), "here")
    for labels, message in (
        ([1.0], "1 labels for 2 steps"),
        ([1.0, 1.5], "step 1 has label 1.5; allowed: 0 to 1"),
        ([-0.1, 1.0], "step 0 has label -0.1"),
        ([1.0, math.nan], "step 1 has label nan"),
        ([None, 1.0], "step 0 has label None"),
    ):
        with pytest.raises(ValueError, match=f"^row 3: {message}"):
            check_labels(labels, (1, 3), "row 3")


def test_check_texts():
    check_texts(["a\n\n", " b"], "row 3")
    with pytest.raises(ValueError, match=r"^row 3: step 1 is '\\n '"):
        check_texts(["a", "\n "], "row 3")
