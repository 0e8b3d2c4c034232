"""What a rollout did, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class RolloutStats:
    """Counted work of the last `generate` call. Tokens are counted by the scheduler, not estimated."""

    prompt_tokens: int = 0
    prefill_tokens: int = 0
    extend_tokens: int = 0
    decode_tokens: int = 0
    sampled_tokens: int = 0
    preemptions: int = 0
    steps: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Sampled tokens per second of wall time."""
        return self.sampled_tokens / self.seconds if self.seconds else 0.0
