"""Rollout files: what was written comes back, a crash at any byte costs one group, Parquet is independent of order."""

import errno
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mstar_engine.rollout_file import RolloutWriter, read_rollouts
from mstar_engine.table_file import partial_path
from mstar_engine.types import Group, Problem, Response


def make_group(name: str, samples: int = 2, length: int = 3, gold: str | None = "12") -> Group:
    rng = np.random.default_rng(len(name) + samples + length)

    def floats():
        return rng.normal(size=length).astype(np.float32)

    responses = tuple(
        Response(
            sample=sample,
            token_ids=rng.integers(0, 2**31 - 1, length).astype(np.int32),
            text=f"{name} caf\u00e9 \u2603 {sample}\n\n# Answer\n12",
            logprobs=floats(),
            scaled_logprobs=np.full(length, -np.inf, np.float32),
            filtered_logprobs=floats(),
            entropy=floats(),
            finish_reason="stop",
            temperature=0.1,
            answer="12",
            correct=None if gold is None else bool(sample % 2),
            step_scores=(0.25, 1 / 3) if sample else None,
            score=0.25 if sample else None,
            selected=bool(sample),
        )
        for sample in range(samples)
    )
    problem = Problem(id=name, question=f"How many in {name}?", gold=gold, source="counting", images=("a.png",))
    return Group(problem=problem, responses=responses, prompt_length=17)


def assert_same(a: Group, b: Group, images: bool) -> None:
    assert (a.problem == b.problem) if images else (b.problem.images == ())
    assert (a.problem.id, a.problem.gold, a.problem.source) == (b.problem.id, b.problem.gold, b.problem.source)
    assert a.prompt_length == b.prompt_length and len(a.responses) == len(b.responses)
    for x, y in zip(a.responses, b.responses, strict=True):
        for name in Response.__slots__:
            left, right = getattr(x, name), getattr(y, name)
            if isinstance(left, np.ndarray):
                assert left.dtype == right.dtype
                np.testing.assert_array_equal(left, right)
            else:
                assert left == right and type(left) is type(right)


@pytest.mark.parametrize("finish", [False, True])
def test_round_trip(tmp_path, finish):
    groups = [make_group("b"), make_group("a", 1, 0), make_group("c", 3, 5, gold=None)]
    with RolloutWriter(tmp_path / "iteration_0001.parquet", 1) as writer:
        for group in groups:
            writer.write(group)
        if finish:
            writer.finish()
            writer.finish()
        problems = {group.problem.id: group.problem for group in groups}
        for wanted, got in zip([groups[1], groups[0], groups[2]], writer.groups(problems), strict=True):
            assert_same(wanted, got, images=True)
        for wanted, got in zip([groups[1], groups[0], groups[2]], writer.groups(), strict=True):
            assert_same(wanted, got, images=False)
    assert partial_path(tmp_path / "iteration_0001.parquet").exists() is not finish


def test_parquet_has_a_row_a_response_and_no_pickle(tmp_path):
    with RolloutWriter(tmp_path / "iteration_0003.parquet", 3) as writer:
        writer.write(make_group("a"))
        table = pq.read_table(writer.finish())
    assert table.num_rows == 2
    assert table["iteration"].to_pylist() == [3, 3]
    assert str(table.schema.field("token_ids").type) == "list<element: int32>"
    assert {"problem_id", "question", "gold", "text", "correct", "score", "selected"} <= set(table.column_names)


def test_parquet_does_not_depend_on_the_order_of_finishing(tmp_path):
    groups = [make_group(name) for name in ("x", "y", "z")]
    contents = []
    for name, order in (("one", groups), ("two", groups[::-1])):
        with RolloutWriter(tmp_path / f"{name}.parquet", 1) as writer:
            for group in order:
                writer.write(group)
            contents.append(writer.finish().read_bytes())
    assert contents[0] == contents[1]


def test_crash_at_every_byte_of_the_last_group(tmp_path):
    path = tmp_path / "iteration_0001.parquet"
    partial = partial_path(path)
    first, second = make_group("a", 1, 1), make_group("b", 1, 1)
    with RolloutWriter(path, 1) as writer:
        writer.write(first)
        kept = partial.stat().st_size
        writer.write(second)
    whole = partial.read_bytes()
    for size in range(len(whole) - 1, kept - 1, -1):
        os.truncate(partial, size)
        assert [group.problem.id for group in read_rollouts(path)] == ["a"]
    for size in (kept, kept + 1, kept + 9, len(whole) - 1):
        partial.write_bytes(whole[:size])
        with RolloutWriter(path, 1) as writer:
            assert writer.finished == {"a"}
            writer.write(second)
        assert partial.read_bytes() == whole
    with RolloutWriter(path, 1) as writer:
        assert writer.finished == {"a", "b"}


@pytest.mark.parametrize("tail", [bytes(64), b"\xff" * 64, b"\x05\x00\x00\x00\x01\x02\x03\x04hello"])
def test_garbage_after_the_last_group_is_cut(tmp_path, tail):
    path = tmp_path / "iteration_0001.parquet"
    with RolloutWriter(path, 1) as writer:
        writer.write(make_group("a"))
    with open(partial_path(path), "ab") as file:
        file.write(tail)
    with RolloutWriter(path, 1) as writer:
        writer.write(make_group("b"))
    assert [group.problem.id for group in read_rollouts(path)] == ["a", "b"]


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "iteration_0001.parquet"
    with RolloutWriter(path, 1) as writer:
        writer.write(make_group("a"))
    data = bytearray(partial_path(path).read_bytes())
    data[len(data) // 2] ^= 1
    partial_path(path).write_bytes(data)
    assert read_rollouts(path) == []


def test_finished_phase_stays_finished(tmp_path):
    path = tmp_path / "iteration_0001.parquet"
    with RolloutWriter(path, 1) as writer:
        writer.write(make_group("a"))
        writer.finish()
    partial_path(path).write_bytes(b"left by a crash between rename and unlink")
    with RolloutWriter(path, 1) as writer:
        assert writer.complete and writer.finished == {"a"} and not partial_path(path).exists()
        with pytest.raises(ValueError, match="come too late"):
            writer.write(make_group("b"))


def test_a_problem_is_kept_once_and_not_empty(tmp_path):
    with RolloutWriter(tmp_path / "iteration_0001.parquet", 1) as writer:
        writer.write(make_group("a"))
        with pytest.raises(ValueError, match="problem a is kept already"):
            writer.write(make_group("a"))
        with pytest.raises(ValueError, match="problem b: a group without responses"):
            writer.write(make_group("b", 0))


def test_groups_that_finish_together(tmp_path):
    path = tmp_path / "iteration_0001.parquet"
    with RolloutWriter(path, 1) as writer:
        writer.write(make_group("a"), make_group("b"))
        writer.write()
        with pytest.raises(ValueError, match="problem c is kept already"):
            writer.write(make_group("c"), make_group("c"))
        assert writer.finished == {"a", "b"}
    assert [group.problem.id for group in read_rollouts(path)] == ["a", "b"]


def test_full_disk_keeps_what_was_kept(tmp_path, monkeypatch):
    path = tmp_path / "iteration_0001.parquet"

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with RolloutWriter(path, 1) as writer:
        writer.write(make_group("a"))
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(OSError, match="No space"):
                writer.write(make_group("b"))
        assert writer.finished == {"a"}
        with monkeypatch.context() as patch:
            patch.setattr(pq.ParquetWriter, "write_table", full)
            with pytest.raises(OSError, match="No space"):
                writer.finish()
        assert sorted(os.listdir(tmp_path)) == ["iteration_0001.partial"]
        writer.write(make_group("b"))
        writer.finish()
    assert [group.problem.id for group in read_rollouts(path)] == ["a", "b"]


def test_empty_phase(tmp_path):
    with RolloutWriter(tmp_path / "iteration_0001.parquet", 1) as writer:
        writer.finish()
    assert read_rollouts(tmp_path / "iteration_0001.parquet") == []
    assert read_rollouts(tmp_path / "absent.parquet") == []


def sampling(path, *steps: str) -> subprocess.Popen:
    """Another process that opens the phase, runs `steps`, then writes groups as fast as it can."""
    code = [
        "import sys; sys.path[:0] = sys.argv[2:]",
        "from pathlib import Path",
        "import test_rollout_file as here",
        *steps,
    ]
    code += ["writer = here.RolloutWriter(Path(sys.argv[1]), 1)", "print('open', flush=True)"]
    code += ["for n in range(10**6): writer.write(here.make_group(f'p{n:06d}'))"]
    command = [sys.executable, "-c", "\n".join(code), str(path), str(Path(__file__).parent), str(Path.cwd())]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def assert_readable(path) -> None:
    """Whole groups from the first on, and the phase goes on from there."""
    names = [group.problem.id for group in read_rollouts(path)]
    assert names and names == [f"p{n:06d}" for n in range(len(names))]
    with RolloutWriter(path, 1) as writer:
        assert writer.finished == set(names)
        writer.write(make_group("more"))
        writer.finish()
    assert len(read_rollouts(path)) == len(names) + 1


def test_a_killed_process_leaves_whole_groups(tmp_path):
    path = tmp_path / "iteration_0001.parquet"
    with sampling(path) as process:
        assert process.stdout.readline() == "open\n"
        deadline = time.monotonic() + 30
        while partial_path(path).stat().st_size < 20_000 and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert_readable(path)


def test_a_write_that_the_system_cuts_short_is_taken_back(tmp_path):
    """A file size limit cuts a write in the middle, as a disk that fills up does."""
    path = tmp_path / "iteration_0001.parquet"
    with sampling(path, "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_011, 20_011))") as process:
        errors = process.communicate(timeout=60)[1]
    assert "File too large" in errors
    assert partial_path(path).stat().st_size < 20_011
    assert_readable(path)


def test_a_pseudo_label_comes_back_over_the_problem_that_is_given(tmp_path):
    """A pseudo-label belongs to its responses; a given answer to the problem, which may have been corrected since."""
    groups = {}
    for name, label, gold in (("a", "pseudo", "12"), ("b", "pseudo", None), ("c", "oracle", "12"), ("d", "gold", "12")):
        group = make_group(name, gold=gold)
        problem = replace(group.problem, label=label, truth="13" if label == "pseudo" else None)
        groups[name] = replace(group, problem=problem)
    with RolloutWriter(tmp_path / "iteration_0001.parquet", 1) as writer:
        writer.write(*groups.values())
        now = {
            name: replace(group.problem, gold="14" if label == "gold" else None, truth=None)
            for name, group in groups.items()
            for label in (group.problem.label,)
        }
        back = {group.problem.id: group.problem for group in writer.groups(now)}
        assert back["a"] == groups["a"].problem and back["b"] == groups["b"].problem
        assert back["c"] == now["c"] and back["d"].gold == "14"
        for group in writer.groups():
            assert group.problem == replace(groups[group.problem.id].problem, images=())
