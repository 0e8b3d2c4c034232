"""The journal: every event survives, a torn one disappears, stages resume."""

import errno
import os

import numpy as np
import pytest

from mstar_engine.journal import Journal, read_events
from mstar_engine.types import Estimate


def test_events_are_read_back(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(
        "iteration", iteration=3, greedy=Estimate(value=0.5, items=2, low=0.1, high=0.9), loss=np.float32(1.5)
    )
    journal.append("note", text="line\nbreak \u2028 and \x00")
    journal.close()
    events = read_events(tmp_path / "journal.jsonl")
    assert [event["event"] for event in events] == ["iteration", "note"]
    assert events[0]["greedy"] == {"value": 0.5, "items": 2, "low": 0.1, "high": 0.9} and events[0]["loss"] == 1.5
    assert events[1]["text"] == "line\nbreak \u2028 and \x00"
    assert events == Journal(tmp_path / "journal.jsonl").events == journal.events
    assert read_events(tmp_path / "absent.jsonl") == []


def test_truncation_at_every_byte_of_the_last_event(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    journal.append("first", number=1)
    kept = path.stat().st_size
    journal.append("second", number=2)
    journal.close()
    whole = path.read_bytes()
    for size in range(kept, len(whole)):
        path.write_bytes(whole[:size])
        assert [event["event"] for event in read_events(path)] == ["first"]
        journal = Journal(path)
        journal.append("third")
        journal.close()
        assert [event["event"] for event in read_events(path)] == ["first", "third"]


def test_unwritten_blocks_at_the_end_are_dropped(tmp_path):
    path = tmp_path / "journal.jsonl"
    Journal(path).append("first")
    with open(path, "ab") as file:
        file.write(bytes(40) + b"\n")
    assert [event["event"] for event in read_events(path)] == ["first"]


def test_damage_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text('{"event": "a"}\n{"eve\n{"event": "b"}\n')
    with pytest.raises(ValueError, match="line 2 is no event"):
        Journal(path)


def test_nan_and_unknown_objects_are_refused_before_the_write(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    with pytest.raises(ValueError):
        journal.append("bad", loss=float("nan"))
    with pytest.raises(TypeError):
        journal.append("bad", value=object())
    assert (tmp_path / "journal.jsonl").read_bytes() == b"" and journal.events == []


def test_stages_resume(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    with journal.stage("warmup") as result:
        result["steps"] = 7
    with pytest.raises(KeyboardInterrupt), journal.stage("evolve"):
        raise KeyboardInterrupt
    journal.close()
    again = Journal(tmp_path / "journal.jsonl")
    assert again.done("warmup") and not again.done("evolve") and not again.done("report")
    assert again.last("stage", stage="warmup")["steps"] == 7
    assert again.last("stage")["reason"] == "KeyboardInterrupt"
    assert list(again.seconds()) == ["warmup", "evolve"]


def test_full_disk_keeps_the_error_and_the_journal(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append("first")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"), journal.stage("evolve"):
        patch.setattr(os, "pwrite", full)
        journal.append("iteration")
    assert [event["event"] for event in read_events(tmp_path / "journal.jsonl")] == ["first", "stage"]
