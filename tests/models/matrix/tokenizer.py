"""The tokenizer of the matrix: one id a character, and the special tokens that a family's processor wants."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, END = "<|pad|>", "<|unknown|>", "<|end|>"
TEMPLATE = (
    "{%% for message in messages %%}{%% for item in message['content'] %%}"
    "{%% if item['type'] == 'image' %%}%s{%% else %%}{{ item['text'] }}{%% endif %%}"
    "{%% endfor %%}{%% endfor %%}{%% if add_generation_prompt %%}>{%% endif %%}"
)


def tokenizer_with(*tokens: str, **named: str) -> PreTrainedTokenizerFast:
    """Printable ASCII behind the special `tokens` and those that the processor asks for by name (image_token=...)."""
    specials = list(dict.fromkeys([PAD, UNKNOWN, END, *tokens, *named.values()]))
    vocabulary = {token: i for i, token in enumerate([*specials, "\n", *map(chr, range(32, 127))])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        extra_special_tokens=named,
        model_input_names=["input_ids", "attention_mask"],
    )
    made.add_special_tokens({"additional_special_tokens": list(tokens)})
    return made


def template(image: str) -> str:
    """A chat template that writes `image` for each image."""
    return TEMPLATE % image


class WithoutVideos:
    """For processors that ask for a video processor: those need torchvision, and pictures do not need them."""

    def check_argument_for_proper_class(self, argument_name: str, argument: object) -> type:
        """Anything is taken for the video processor."""
        if argument_name == "video_processor":
            return type(argument)
        return super().check_argument_for_proper_class(argument_name, argument)


def without_videos(processor: type) -> type:
    """A processor class that needs no video processor."""
    return type(processor.__name__, (WithoutVideos, processor), {})
