"""Files that survive a crash: a write is there whole or not at all.

Three disciplines: a file replaced in one step (temporary, fsync, rename), a file that only grows and is cut back when a
write fails part way (full disk, interrupt), and a lock on a folder that dies with the process.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make new names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file, then put it at `path`. On any failure `path` is as it was."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def replace_text(path: Path, text: str) -> None:
    """`replace_file` with UTF-8 text."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8") and None)


class AppendFile:
    """A file that only grows: `append` returns when the bytes are on the disk, or raises and leaves it as it was.

    `length` is the size of the readable part found by the caller: what lies beyond is a torn write and is cut off.
    """

    def __init__(self, path: Path, length: int) -> None:
        """Open or create `path` and cut it to `length` bytes."""
        self.path = path
        existed = path.exists()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.length = length
        os.ftruncate(self._handle, length)
        if not existed:
            sync_folder(path.parent)

    def append(self, data: bytes) -> None:
        """Write `data` at the end and wait for the disk. OSError (ENOSPC among others) passes through."""
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(self._handle, data[done:], self.length + done)
            os.fdatasync(self._handle)
        except BaseException:
            os.ftruncate(self._handle, self.length)
            raise
        self.length += len(data)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class FolderLock:
    """Sole use of a folder. The system drops the lock when the process ends, however it ends."""

    def __init__(self, folder: Path) -> None:
        """Take the lock; BlockingIOError when another process holds it (its id, if known, is the message)."""
        self._handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(self._handle, 32).decode(errors="replace").strip()
            os.close(self._handle)
            raise BlockingIOError(holder or "unknown") from None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Give the folder back; a second call does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
