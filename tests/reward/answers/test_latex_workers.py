"""Workers that compare LaTeX: what hangs, dies or babbles costs one comparison and never the run."""

import subprocess
import sys
import threading
import time

import pytest

from mstar_engine.answer_type import AnswerType
from mstar_engine.reward import latex
from mstar_engine.reward.gold_check import refuse_unreadable
from mstar_engine.reward.golds import Gold, compare
from mstar_engine.reward.latex import LatexWorkers
from mstar_engine.reward.typed import judge_typed
from mstar_engine.reward.verdict import CRASH, MATCH, MISMATCH, REASONS, TIMEOUT, UNREADABLE
from mstar_engine.types import Problem

needs_math_verify = pytest.mark.skipif(not latex.installed(), reason="needs math-verify")
STUB = """
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    answer, gold = json.loads(line)
    if answer == "hang":
        time.sleep(600)
    if answer == "die":
        os._exit(1)
    if answer == "babble":
        print("x" * 100_000, flush=True)
    elif answer == "drip":
        while True:
            print(".", end="", flush=True)
            time.sleep(0.01)
    print("match" if answer == gold else "mismatch", flush=True)
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Workers of a script that does as it is told, so that math-verify need not be there."""
    path = tmp_path / "stub.py"
    path.write_text(STUB)
    monkeypatch.setattr(latex, "_WORKER", path)
    monkeypatch.setattr(latex, "installed", lambda: True)
    workers = LatexWorkers(2, seconds=0.5)
    yield workers
    workers.close()


def test_a_comparison_that_hangs_is_stopped_and_counted(stub):
    assert stub.compare("hang", "1") == TIMEOUT
    assert stub.compare("drip", "1") == TIMEOUT
    stub.seconds = 60.0
    assert [stub.compare(answer, "1") for answer in ("1", "2", "1")] == [MATCH, MISMATCH, MATCH]
    assert (stub.counts.comparisons, stub.counts.timeouts, stub.counts.crashes) == (5, 2, 0)


def test_a_worker_that_dies_is_replaced(stub):
    stub.seconds = 60.0
    assert stub.compare("die", "1") == CRASH
    assert stub.compare("1", "1") == MATCH
    assert stub.counts.crashes == 1


def test_a_worker_that_babbles_is_replaced(stub):
    stub.seconds = 60.0
    assert stub.compare("babble", "babble") == CRASH
    assert [stub.compare(answer, "1") for answer in ("2", "1")] == [MISMATCH, MATCH]


def test_a_worker_that_cannot_start_costs_its_comparisons_only(stub, tmp_path):
    (tmp_path / "stub.py").write_text("raise SystemExit(1)")
    assert [stub.compare("1", "1") for _ in range(2)] == [CRASH, CRASH]


def test_threads_share_the_workers(stub):
    stub.seconds = 60.0
    found = {}

    def ask(number):
        found[number] = stub.compare(str(number), str(number // 2 * 2))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: MISMATCH if number % 2 else MATCH for number in range(20)}


def test_closing_ends_the_processes_and_may_be_repeated(stub):
    stub.compare("1", "1")
    processes = [worker._process for worker in stub._all if worker._process is not None]
    assert processes
    stub.close()
    stub.close()
    assert all(process.returncode is not None for process in processes)
    assert stub.compare("1", "1") in (MATCH, TIMEOUT)  # anew; 0.5 s may be too short on a busy machine


@pytest.mark.parametrize("fields", [{"workers": 0}, {"seconds": 0.0}, {"seconds": float("inf")}])
def test_limits_that_are_none_are_refused(fields):
    with pytest.raises(ValueError, match="LatexWorkers"):
        LatexWorkers(**fields)


def test_latex_is_refused_before_work_where_it_cannot_be_compared(monkeypatch):
    monkeypatch.setattr(latex, "installed", lambda: False)
    with pytest.raises(ValueError, match=r"pip install 'mstar_engine\[latex\]'"):
        Gold("\\frac{1}{2}", AnswerType(kind="latex"))
    latex_type = AnswerType(kind="latex")
    for gold in ("x", None):  # an unlabelled problem's answers are voted on
        with pytest.raises(ValueError, match=r"train set: 1 .* p \(LaTeX answers need math-verify"):
            refuse_unreadable([Problem(id="p", question="?", gold=gold, answer_type=latex_type)], "train set")


@needs_math_verify
def test_math_verify_under_a_time_limit():
    workers = LatexWorkers(seconds=3.0)
    try:
        workers.compare("1", "1")
        begin = time.monotonic()
        assert workers.compare("9^{9^{9^{9^{9}}}}", "3") in (TIMEOUT, CRASH, UNREADABLE)
        assert time.monotonic() - begin < 60.0
        workers.seconds = 60.0
        assert workers.compare("\\frac{1}{2}", "0.5") == MATCH
        assert workers.compare("\\frac{", "0.5") in (UNREADABLE, MISMATCH)
    finally:
        workers.close()


@needs_math_verify
def test_what_is_no_text_is_no_answer():
    gold = Gold("x^2", AnswerType(kind="latex"))
    long = ("\U0001f171", "\x01", "\\", "{", "^")
    for answer in ("\ud800", "\x00", "x^2\ud800", *(piece * 4096 for piece in long)):
        assert compare(answer, gold) in set(REASONS) - {MATCH}


@needs_math_verify
def test_a_typed_problem_in_latex():
    gold = Gold("(x+1)^2", AnswerType(kind="latex", extract=("boxed",)))
    verdict = judge_typed("so $\\boxed{x^2+2x+1}$", gold)
    assert (verdict.correct, verdict.answer, verdict.reason, verdict.where) == (True, "x^2+2x+1", MATCH, "boxed")
    assert judge_typed("so $\\boxed{x^2}$", gold).reason == MISMATCH


@needs_math_verify
def test_the_worker_imports_nothing_of_ours():
    code = (
        "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__');"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('mstar_engine', 'torch')]"
    )
    subprocess.run([sys.executable, "-P", "-c", code, str(latex._WORKER)], input=b"", check=True, timeout=120)
