"""The tokenizer of the tiny default model: a closed vocabulary of words, digits and single ASCII characters.

Every token carries its own spacing ("red " and " + " are tokens), so decoding is concatenation and text, blank lines
included, survives the round trip exactly. Numbers are read and written digit by digit: arithmetic has to be learned.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, END, IMAGE = "<|pad|>", "<|unknown|>", "<|end|>", "<image>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
WORDS = (
    *("red ", "blue ", "green ", "gold ", "purple ", "teal "),
    *("What ", "is ", "the ", "sum ", "of ", "and ", "minus ", "tile ", "tiles ", "tile?", "tiles?", "Read ", "tiles."),
    *(" + ", " - ", " = ", "# Answer ", "\n\n"),
)
CHARACTERS = tuple(dict.fromkeys("0123456789-\n" + "".join(map(chr, range(32, 127)))))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer. Characters outside printable ASCII and the newline become the unknown token."""
    specials = (PAD, UNKNOWN, END, IMAGE, *ROLES)
    vocabulary = {token: i for i, token in enumerate((*specials, *CHARACTERS, *WORDS))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    longest_first = sorted(WORDS, key=len, reverse=True)
    escaped = (word.translate({ord(c): f"\\{c}" for c in "+?.#-"}) for word in longest_first)
    tokenizer.pre_tokenizer = Split(Regex("|".join([*escaped, r"[\s\S]"])), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        extra_special_tokens={"image_token": IMAGE} | {f"{role.strip('<|>')}_token": role for role in ROLES},
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
