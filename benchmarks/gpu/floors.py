"""The fewest bytes that each piece of work must move: divided by the bandwidth of a copy, its floor.

Every input is read once and every output written once; outputs of a few bytes a row are left out. No version that
computes the same thing can be faster, whatever else it does.
"""

from __future__ import annotations


def logits_bytes(rows: int, vocabulary: int, itemsize: int = 2, reads: int = 1) -> int:
    """`reads` passes over logits [rows, vocabulary]. A nucleus needs its threshold first: two."""
    return reads * rows * vocabulary * itemsize


def tree_tokens(groups: int, rows: int, prompt: int, generated: int) -> int:
    """Tokens of a tree of `groups` prompts, each above `rows` rows of `generated` tokens of their own."""
    return groups * (prompt + rows * generated)


def layer_kv_bytes(tokens: int, kv_heads: int, head_dim: int, itemsize: int = 2) -> int:
    """K and V of `tokens` tokens in one layer."""
    return 2 * tokens * kv_heads * head_dim * itemsize


def hidden_bytes(steps: int, dim: int, itemsize: int = 2) -> int:
    """The hidden states at step ends, [steps, dim]; two label rows are nothing beside them."""
    return steps * dim * itemsize


def computed_share(samples: int, prompt: int, response: int) -> float:
    """Tokens of a group with its prompt computed once, in parts of those of one forward per response."""
    return (prompt + samples * response) / (samples * (prompt + response))
