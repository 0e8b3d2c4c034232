"""Which characters a token wrote: the map from a response's text back to its generated tokens.

Tokens are never made from text again: a policy may write a text with other tokens than the tokenizer would, and the
log-probabilities and the hidden states belong to those. Decoding is incremental. Where one more token does not simply
add characters (bytes of a character spread over tokens, tokens without text), the beginning of the response is decoded
anew for that token, which is exact for every tokenizer and slow; tokenizers without a fast backend always do that.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase


def decode(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> str:
    """The text of the tokens as it is: special tokens stay, spaces are not tidied."""
    if tokenizer.is_fast:
        return tokenizer.backend_tokenizer.decode(list(token_ids), skip_special_tokens=False)
    return tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def token_spans(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[tuple[int, int]]]:
    """The text of the tokens and, for each token, the characters [begin, end) of it that the token wrote.

    Tokens that share a character each span it. Begins and ends never descend; a token without text has an empty span.
    """
    ids = [int(token) for token in token_ids]
    text = decode(ids, tokenizer)
    known = _streamed(ids, tokenizer, text) if tokenizer.is_fast else [None] * (len(ids) + 1)
    begins, ends = [0], [0]
    for count in range(1, len(ids) + 1):
        settled = touched = known[count]
        if settled is None:
            written = decode(ids[:count], tokenizer)
            settled = _shared(written, text)
            # What does not agree yet is a character that later tokens complete: this token is a part of it.
            touched = min(settled + (len(written) > settled), len(text))
        begins.append(max(begins[-1], settled))
        ends.append(max(ends[-1], touched, begins[-1]))
    return text, list(zip(begins[:-1], ends[1:], strict=True))


def _streamed(ids: list[int], tokenizer: PreTrainedTokenizerBase, text: str) -> list[int | None]:
    """How many characters the first `count` tokens write, by count; None where the stream held text back."""
    stream, backend = DecodeStream(skip_special_tokens=False), tokenizer.backend_tokenizer
    known: list[int | None] = [0] + [None] * len(ids)
    written = 0
    for count, token in enumerate(ids, start=1):
        try:
            chunk = stream.step(backend, token)
        except Exception:  # The stream raises a bare Exception where a token changes text that it has handed out.
            return [None] * (len(ids) + 1)
        if chunk is None:
            continue
        if not text.startswith(chunk, written):
            return [None] * (len(ids) + 1)
        written += len(chunk)
        known[count] = written
    return known


def _shared(written: str, text: str) -> int:
    """Length of the longest common beginning. They differ near the end of `written`, so the search starts there."""
    length = len(written)
    while not text.startswith(written[:length]):
        length -= 1
    return length
