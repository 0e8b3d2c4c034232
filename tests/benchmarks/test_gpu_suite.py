"""The GPU suite without a GPU: processes, rows, table and result file at tiny sizes; and what can go wrong.

Of each kind of subject one runs by the command, in a process of its own; the others here, for importing takes longest.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import decode, engines, improve, layers, step_rewards, tree_attention
from benchmarks.gpu.bench import Bench, Peer
from benchmarks.gpu.preparation import gpu_tests, run_step
from benchmarks.gpu.suite import ROOT, Subject, Suite
from benchmarks.gpu.suite_row import Skipped, SuiteRow
from benchmarks.gpu.timing import Rotation, Timer
from benchmarks.gpu_suite import SUBJECTS, environment

BY_COMMAND = ("sampling", "prm_scoring", "vllm")
OTHERS = {"tree_attention": tree_attention, "step_rewards": step_rewards, "decode_7b": decode, "improve": improve}
OTHERS |= {"layers": layers, "sglang": engines}
SKIPPED = {"sampling": {"FlashInfer"}, "vllm": {"vLLM"}, "sglang": {"SGLang"}, "prm_scoring": set()}
SKIPPED |= {"tree_attention": {"FlashInfer", "flash-attn"}, "improve": {"Liger"}}


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    variables = dict(os.environ, OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="")
    whole = [sys.executable, "-m", "benchmarks.gpu_suite", *arguments]
    return subprocess.run(whole, cwd=ROOT, env=variables, capture_output=True, text=True)


@pytest.mark.slow
def test_subjects_run_and_their_rows_are_written(tmp_path: Path) -> None:
    done = command("--tiny", "--device", "cpu", "--out", str(tmp_path), "--only", *BY_COMMAND)
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = tmp_path.iterdir()
    assert written.name.endswith("_cpu.json")
    result = json.loads(written.read_text())
    assert list(result["subjects"]) == list(BY_COMMAND)
    for name, subject in result["subjects"].items():
        assert subject["outcome"] == "finished"
        assert all(row["part"] == name and row["ours_value"] > 0 and row["ratio"] > 0 for row in subject["rows"])
        assert bool(subject["rows"]) == (name != "vllm")
    with_goals = [row for subject in result["subjects"].values() for row in subject["rows"] if row["goal"]]
    assert all(row["verdict"].startswith("met" if row["met"] else "missed by ") for row in with_goals)
    for name, subject in result["subjects"].items():
        assert {one["peer"] for one in subject["skipped"]} == SKIPPED[name]
        assert all(one["reason"].endswith(("is not installed", "needs CUDA")) for one in subject["skipped"])
        assert all(f"skipped: {peer} beside " in done.stdout for peer in SKIPPED[name])
    for name in ("ours", "floor", "peer", "goal"):
        assert name in done.stdout
    assert "goals met: " in done.stdout


@pytest.mark.parametrize("part", OTHERS)
def test_the_other_subjects(part: str) -> None:
    device = torch.device("cpu")
    found = list(OTHERS[part].rows(Bench(part, device, True, 1e10, Timer(device, 2))))
    rows = [one for one in found if isinstance(one, SuiteRow)]
    assert bool(rows) == (part != "sglang")
    assert all(row.ours_value > 0 and row.peer_value > 0 and row.part == part for row in rows)
    assert {one.peer for one in found if isinstance(one, Skipped)} == SKIPPED.get(part, set())


def test_what_dies_is_reported_and_stops_nothing(tmp_path: Path) -> None:
    row = "bench.values('some work', 'ours', 'peer', 1.0, 2.0, 'us')"
    subjects = {
        "raises": f"def rows(bench):\n    yield {row}\n    raise ValueError('no such luck')\n",
        "killed": f"import os\ndef rows(bench):\n    yield {row}\n    os.kill(os.getpid(), 9)\n",
        "hangs": "import time\ntime.sleep(1000)\n",
        "good": f"def rows(bench):\n    yield {row}\n",
    }
    for name, text in subjects.items():
        (tmp_path / f"{name}.py").write_text(text)
    variables = environment("cpu")
    variables["PYTHONPATH"] += os.pathsep + str(tmp_path)
    machine = {"device": "cpu", "name": "here", "versions": {}, "bandwidth": 1e10, "extension": True}
    path = tmp_path / "result.json"
    suite = Suite(path, machine, variables, True, time.monotonic() + 300)
    chosen = [Subject(name, name, 4.0 if name == "hangs" else 60.0) for name in subjects]
    assert suite.run(chosen, tests=False) == 1

    result = json.loads(path.read_text())["subjects"]
    assert {name: len(entry["rows"]) for name, entry in result.items()} == dict(raises=1, killed=1, hangs=0, good=1)
    assert result["raises"]["outcome"] == "died: exit code 1"
    assert result["raises"]["last_lines"][-1] == "ValueError: no such luck"
    assert result["killed"]["outcome"] == "died: SIGKILL"
    assert result["hangs"]["outcome"] == "stopped: its time was up"
    assert result["good"]["outcome"] == "finished"

    spent = Suite(path, machine, variables, True, time.monotonic())
    assert spent.run([Subject("good", "good", 60.0), Subject("late", "good", 60.0)], tests=False) == 1
    result = json.loads(path.read_text())["subjects"]
    assert result["late"]["outcome"] == "not started: the budget is spent"
    assert len(result["good"]["rows"]) == 1, "what an earlier run measured stays"


def test_a_peer_that_fails_is_skipped_by_name() -> None:
    device = torch.device("cpu")
    bench = Bench("part", device, True, 1e10, Timer(device, 2))

    def broken() -> Rotation:
        raise RuntimeError("no kernel image\nand more")

    fine = Rotation("fine", (lambda: sum(range(1000)),))
    peers = [Peer("broken", broken), Peer("other", lambda: fine, 1.0)]
    first, second = bench.compare("work", Rotation("ours", fine.calls), peers)
    assert first == Skipped("work", "broken", "failed: RuntimeError: no kernel image")
    assert isinstance(second, SuiteRow)
    assert second.peer == "other"
    assert second.goal == "at least 1x"


def test_without_a_gpu_it_says_what_it_needs() -> None:
    done = command()
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "needs a CUDA device" in done.stderr


def test_subjects_have_modules() -> None:
    for subject in SUBJECTS:
        assert (ROOT / subject.module.replace(".", "/")).with_suffix(".py").exists()


def test_files_with_gpu_tests_are_found() -> None:
    found = gpu_tests(ROOT)
    assert "tests/rollout/test_fixed_decode.py" in found
    assert "tests/kernels/test_step_rewards.py" in found, "its mark is in a module beside it"
    assert "tests/test_config.py" not in found


def test_a_step_reports_how_it_ended() -> None:
    def ended(code: str, seconds: float = 60.0) -> dict:
        return run_step([sys.executable, "-c", code], ROOT, dict(os.environ), seconds)

    assert ended("")["outcome"] == "finished"
    failing = ended("print('why'); raise SystemExit(3)")
    assert (failing["outcome"], failing["last_lines"]) == ("exit code 3", ["why"])
    assert ended("import time; time.sleep(100)", 0.5)["outcome"] == "stopped after 0 s"
