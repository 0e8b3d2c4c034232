"""LaTeX workers around the end of things: an exit, an interrupt, a fork. No verdict hangs, and no worker stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mstar_engine.reward import latex

# The process whose comparisons never end, and one that says how it goes; no math-verify is needed.
BEGIN = """
import os, sys, threading, time
from pathlib import Path
from mstar_engine.reward import latex
latex._WORKER, latex.installed = Path(sys.argv[1]), lambda: True
latex.use(int(sys.argv[2]), 600.0)
"""
WORKER = """
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    said = json.loads(line)
    if said[0] == "hang":
        open(sys.argv[0] + "." + str(os.getpid()), "w").close()
        time.sleep(600)
    print("match" if said[0] == said[-1] else "mismatch", flush=True)
"""
DAEMON = """
threading.Thread(target=latex.compare, args=("hang", "1"), daemon=True).start()
while not list(Path(sys.argv[1]).parent.glob("*.py.*")):
    time.sleep(0.01)
"""
ASKED = """
from mstar_engine.reward import latex
print(list(latex.side_by_side(lambda n: latex.compare("hang", "1"), range(8))))
"""
FORKED = """
assert latex.compare("1", "1") == "match"
threading.Thread(target=latex.compare, args=("hang", "1"), daemon=True).start()
while not list(Path(sys.argv[1]).parent.glob("*.py.*")):
    time.sleep(0.01)
child = os.fork()
if not child:  # the only worker is the parent's, and taken
    said = [latex.compare("2", "2"), latex.compare("2", "3")]
    latex.workers().close()
    os._exit(said != ["match", "mismatch"])
assert os.waitpid(child, 0)[1] == 0
assert latex.counts().crashes == 0
"""


def started(folder: Path, code: str, workers: int = 1) -> subprocess.Popen:
    (folder / "worker.py").write_text(WORKER)
    # A process that a background job starts ignores interrupts.
    begin = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n" + BEGIN
    command = [sys.executable, "-c", begin + code, str(folder / "worker.py"), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def hanging(folder: Path) -> list[int]:
    """The workers that began a comparison without end."""
    return [int(path.suffix[1:]) for path in folder.glob("worker.py.*")]


def ended(pid: int) -> bool:
    """Whether a process is gone, or will be: it may take a moment."""
    for _ in range(500):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def test_an_exit_does_not_wait_for_a_comparison(tmp_path):
    process = started(tmp_path, DAEMON)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert len(hanging(tmp_path)) == 1 and all(map(ended, hanging(tmp_path)))


@pytest.mark.parametrize("workers", [1, 3])
def test_an_interrupt_does_not_wait_for_a_comparison(tmp_path, workers):
    process = started(tmp_path, ASKED, workers)
    while len(hanging(tmp_path)) < workers and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert errors.strip().endswith("KeyboardInterrupt") and process.returncode == -signal.SIGINT
    assert len(hanging(tmp_path)) == workers and all(map(ended, hanging(tmp_path)))


def test_a_forked_process_has_workers_of_its_own(tmp_path):
    process = started(tmp_path, FORKED)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert all(map(ended, hanging(tmp_path)))


def test_a_closing_is_no_failure(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(latex, "_WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(latex, "installed", lambda: True)
    latex.use(2, 60.0)
    assert list(latex.side_by_side(lambda n: latex.compare(str(n), "1"), range(3))) == ["mismatch", "match", "mismatch"]
    assert latex.counts() == latex.LatexCounts(3, 0, 0)
    latex.workers().close()
    assert latex.compare("1", "1") == "match" and latex.counts() == latex.LatexCounts(4, 0, 0)
    latex.use(1, latex.SECONDS)
    assert latex.counts() == latex.LatexCounts()
