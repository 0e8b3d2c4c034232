"""torchvision, which transformers takes for images where it is installed, and for some families needs: what to say
where it is absent, or was built for another torch.

Nothing of torch or transformers is imported here: this must work where they cannot be.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Iterator

NAME = "torchvision"


def processor_fault(error: Exception) -> str:
    """Why a processor cannot be loaded, in one line: the first of what transformers said, or what to install."""
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    if NAME in str(error).lower() and importlib.util.find_spec(NAME) is None:
        needs, _, _ = first_line.partition(" requires ")
        return f"{needs} needs torchvision, which is not installed: pip install 'mstar_engine[vision]', or torchvision"
    return first_line


def misfit(error: BaseException) -> str | None:
    """What to say of an import that failed because the torchvision installed does not fit torch; None of another."""
    if not any(f"{NAME}::" in str(cause) or f"{NAME}/" in str(cause) for cause in _causes(error)):
        return None
    torch, torchvision = map(importlib.metadata.version, ("torch", NAME))
    return (
        f"torchvision {torchvision} does not fit torch {torch}, so transformers cannot be imported: install the one "
        "built for it (https://pytorch.org/get-started), or none (pip uninstall torchvision)"
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
