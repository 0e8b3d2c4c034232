"""Durable files: whole or not at all, whatever fails."""

import errno
import os
import subprocess
import sys

import pytest

from mstar_engine.durable import AppendFile, FolderLock, replace_file, replace_text


def test_replace_leaves_the_old_file_on_failure(tmp_path):
    path = tmp_path / "file"
    replace_text(path, "old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_file(path, fail)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("written", [0, 1, 4])
def test_append_takes_back_a_failed_write(tmp_path, monkeypatch, error, written):
    file = AppendFile(tmp_path / "file", 0)
    file.append(b"first")
    real = os.pwrite

    def full(handle, data, offset):
        if offset == 5 + written:
            raise error
        return real(handle, data[:written], offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(type(error)):
            file.append(b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    file.append(b"third")
    file.close()
    file.close()
    assert (tmp_path / "file").read_bytes() == b"firstthird"


def test_reopening_cuts_the_torn_tail(tmp_path):
    (tmp_path / "file").write_bytes(b"good-torn")
    file = AppendFile(tmp_path / "file", 5)
    file.append(b"new")
    file.close()
    assert (tmp_path / "file").read_bytes() == b"good-new"


def test_lock_excludes_another_process_and_dies_with_it(tmp_path):
    code = "import sys; from pathlib import Path; from mstar_engine.durable import FolderLock\n"
    code += "lock = FolderLock(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=str(holder.pid)):
            FolderLock(tmp_path)
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    FolderLock(tmp_path).release()
