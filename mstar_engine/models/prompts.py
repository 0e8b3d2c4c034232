"""Problems to model inputs, once: rollout and training read the same encoded prompt.

Whatever a family's processor does to an image (resizing, tiling, patch order, placeholder expansion) happens here and
nowhere else, so that the policy is trained on exactly the prompt it was sampled from.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock

import torch
from PIL import Image
from torch import Tensor

from mstar_engine.data.file_image import file_images
from mstar_engine.data.image_integrity import ImageError
from mstar_engine.data.images import ImageLimits, read_image
from mstar_engine.data.tensor_cache import TensorCache
from mstar_engine.models.foreign_prompts import refuse_nested, refuse_quoted, refused
from mstar_engine.models.prompt_cache import Messages, PromptCache, Run
from mstar_engine.prompt_template import PLAIN, fill
from mstar_engine.types import Problem

_NO_INPUTS = ("input_ids", "attention_mask", "labels")
"""Outputs that are no further inputs of a model: some processors (PaliGemma's) make labels, which ask for a loss."""


@dataclass(frozen=True, slots=True, eq=False)
class EncodedPrompt:
    """What a model needs to read a problem.

    `input_ids` int64 [length], image tokens expanded. `inputs` are the processor's other outputs (pixel values, grid
    sizes ...), each with its leading image, patch or batch dimension. `token_inputs` are outputs with one value a
    token, [length] (token types); a response extends them as text (see `text_types.py`). No attention mask: a prompt
    has no padding.
    """

    input_ids: Tensor
    inputs: Mapping[str, Tensor]
    token_inputs: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Memory held by the tensors, in bytes."""
        return sum(t.nbytes for t in (self.input_ids, *self.inputs.values(), *self.token_inputs.values()))


def joined_inputs(prompts: Sequence[EncodedPrompt]) -> dict[str, Tensor]:
    """The inputs of prompts that do not count tokens, concatenated along their first dimension."""
    others: dict[str, list[Tensor]] = {}
    for prompt in prompts:
        for name, value in prompt.inputs.items():
            others.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in others.items()}


def open_image(problem: Problem, image: object, read: Callable[[Path], Image.Image] = read_image) -> Image.Image:
    """An RGB image of a problem, read if it is a path; ValueError if that fails."""
    try:
        if isinstance(image, Image.Image):
            return image if image.mode == "RGB" else image.convert("RGB")
        return read(Path(image))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"problem {problem.id!r}: cannot read image {image!s}: {error}") from error


def _same_prompt(a: Problem, b: Problem) -> bool:
    """Whether two problems of one id show the same prompt (a reworded question must not hit the cache)."""
    return (
        a.question == b.question
        and len(a.images) == len(b.images)
        and all(x is y or (not isinstance(x, Image.Image) and x == y) for x, y in zip(a.images, b.images))
    )


class PromptEncoder:
    """Encodes problems with a Hugging Face processor and its chat template; remembers the recent ones.

    The chat template sees an optional system message, then one user message: the images in order, then the text, which
    is the question in `template` (see prompt_template.py).
    `cache_bytes` bounds the memory of the cache (least recently used out first; 0 keeps nothing). `images` keeps on
    disk what the processor makes of prompts and image files, so that each is preprocessed once; `limits` those of the
    files. Thread-safe.
    """

    def __init__(
        self,
        processor,
        system: str | None = None,
        *,
        template: str = PLAIN,
        cache_bytes: int = 256 << 20,
        images: TensorCache | None = None,
        limits: ImageLimits | None = None,
    ) -> None:
        tokenizer = getattr(processor, "tokenizer", processor)
        if not getattr(processor, "chat_template", None):
            raise ValueError(
                f"{type(processor).__name__} has no chat template; set processor.chat_template (a Jinja template that "
                'renders {"type": "image"} and {"type": "text"} content) or use an instruction-tuned checkpoint'
            )
        self.processor = processor
        self._kept: PromptCache | None = None
        self._read: Callable[[Path], Image.Image] = partial(read_image, limits=limits)
        if images is not None:
            self.keep_images(images, limits)
        self.tokenizer = tokenizer
        self.system = system
        self.template = template
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[str, tuple[Problem, EncodedPrompt]] = OrderedDict()
        self._held = 0
        self._lock = Lock()
        self._read_back = False

    def encode(self, problem: Problem) -> EncodedPrompt:
        """Encode a problem's images and question up to where the policy's turn begins.

        Raises ValueError, naming the problem and the path, for a missing or corrupt image; naming the processor for
        what its code or its chat template cannot do (see `foreign_prompts.py`).
        """
        with self._lock:
            hit = self._cache.get(problem.id)
            if hit is not None and _same_prompt(hit[0], problem):
                self._cache.move_to_end(problem.id)
                return hit[1]
        prompt = self._encode(problem)
        with self._lock:
            stale = self._cache.pop(problem.id, None)
            self._held += prompt.nbytes - (stale[1].nbytes if stale else 0)
            self._cache[problem.id] = (problem, prompt)
            while self._held > self.cache_bytes:
                self._held -= self._cache.popitem(last=False)[1][1].nbytes
        return prompt

    def keep_images(self, images: TensorCache, limits: ImageLimits | None = None) -> None:
        """Keep in `images`, from now on, what the processor makes of prompts with image files within the limits."""
        self._kept, self._read = PromptCache(self.processor, images), file_images(limits or ImageLimits()).open

    def outputs(self, run: Run, messages: Messages, **options: object) -> Mapping[str, Tensor]:
        """`run(processor, messages, **options)`, or what it made before. ImageError for an image that is damaged."""
        if self._kept is None:
            return run(self.processor, messages, **options)
        return self._kept.outputs(run, messages, **options)

    def text(self, problem: Problem) -> str:
        """What the user says beside the images."""
        return fill(self.template, question=problem.question)

    def messages(self, problem: Problem) -> Messages:
        """The conversation that the chat template renders."""
        content = [{"type": "image", "image": open_image(problem, image, self._read)} for image in problem.images]
        user = {"role": "user", "content": [*content, {"type": "text", "text": self.text(problem)}]}
        if self.system is None:
            return [user]
        return [{"role": "system", "content": [{"type": "text", "text": self.system}]}, user]

    def _encode(self, problem: Problem) -> EncodedPrompt:
        """Run the processor on one problem; its outputs are sorted by what they count, tokens or images."""
        messages = self.messages(problem)
        try:
            outputs = self._outputs_of(messages)
        except ImageError as error:  # found when the pixels were asked for
            paths = ", ".join(map(str, problem.images))
            raise ValueError(f"problem {problem.id!r}: cannot read image {paths}: {error}") from error
        except (OSError, MemoryError):
            raise
        except Exception as error:  # of the processor's own code, or its template's
            raise ValueError(f"problem {problem.id!r}: {refused(self.processor, error, self.system)}") from error
        prompt = self._sorted(outputs)
        if not self._read_back and not isinstance(messages[-1]["content"], str):
            refuse_quoted(self.processor, self.tokenizer, prompt.input_ids, problem)
            self._read_back = True
        return prompt

    def _outputs_of(self, messages: Messages) -> Mapping[str, Tensor]:
        """The processor's outputs for a conversation."""
        return self.outputs(_rendered, messages)

    @staticmethod
    def _sorted(outputs: Mapping[str, Tensor]) -> EncodedPrompt:
        """A processor's outputs for one prompt, by what they count."""
        input_ids = outputs["input_ids"]
        inputs, token_inputs = {}, {}
        for name, value in outputs.items():
            if name in _NO_INPUTS or not isinstance(value, Tensor):
                continue
            if value.shape == input_ids.shape and not value.is_floating_point():
                token_inputs[name] = value[0]
            else:
                inputs[name] = value
        return EncodedPrompt(input_ids[0].to(torch.int64), inputs, token_inputs)


def _rendered(processor, messages: Messages) -> Mapping[str, Tensor]:
    outputs = processor.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    refuse_nested(outputs)
    return outputs
