"""Room for decoded images: a thread waits until its image fits, so that several take no more than the largest."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class PixelRoom:
    """At most `pixels` in the hands of several threads together; one image that is larger has the room for itself."""

    def __init__(self, pixels: int) -> None:
        self.pixels, self.taken = pixels, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def of(self, pixels: int) -> Iterator[None]:
        """Room for an image of so many pixels, as soon as there is."""
        with self._changed:
            self._changed.wait_for(lambda: not self.taken or self.taken + pixels <= self.pixels)
            self.taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self.taken -= pixels
                self._changed.notify_all()
