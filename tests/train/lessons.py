"""Examples to train tiny models of any family on, with images and without, of several lengths."""

import numpy as np
import torch
from families import VOCABULARY, FixedPrompts, prompt

from mstar_engine.models.tiny import build_tiny
from mstar_engine.types import Problem, TrainingExample


def lessons(family: str, count: int = 5, text_only: int | None = 3) -> tuple[FixedPrompts, list[TrainingExample]]:
    """An encoder and `count` examples, of lengths and weights of their own; number `text_only` shows no image."""
    generator = np.random.default_rng(7)
    prompts, examples = {}, []
    for number in range(count):
        problem = Problem(id=f"p{number}", question="")
        prompts[problem.id] = prompt(family, 5 + 3 * (number % 4), seed=number, image=number != text_only)
        ids = generator.integers(10, VOCABULARY, 3 + 2 * (number % 3)).astype(np.int32)
        examples.append(TrainingExample(problem=problem, response_ids=ids, weight=0.5 + 0.25 * number))
    return FixedPrompts(prompts, build_tiny(0)[1]), examples


def gradients(loss: torch.Tensor, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of every parameter that has one, by name."""
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(named, found) if gradient is not None}


def assert_close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], tolerance: float = 1e-4) -> None:
    """Equal up to rounding, each relative to its own norm; some (a bias of keys) are zero but for rounding."""
    assert a.keys() == b.keys()
    largest = max(gradient.norm() for gradient in b.values())
    for name in a:
        assert (a[name] - b[name]).norm() <= tolerance * b[name].norm() + 1e-6 * largest, name
