"""Fixtures of tests that do whole runs, and the order of files: what takes longest comes first, so that all workers end
together."""

import zlib
from pathlib import Path

import pytest
import torch
from small_runs import run

from mstar_engine.reward import annotate, answers
from mstar_engine.reward.answers import Verdict

LONGEST = (
    "test_scheduler.py",
    "test_run.py",
    "test_run_interrupted.py",
    "test_ablation.py",
    "test_engine_triton.py",
    "test_sampling_triton.py",
    "test_trajectory.py",
    "test_pseudo_run.py",
    "test_tree_attention_triton.py",
    "test_gpu_suite.py",
    "test_fused.py",
    "test_lora_run.py",
)
"""Files that take a quarter of a minute or more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others as they were."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("run") / "whole"
    assert run(directory) == 0
    return directory


@pytest.fixture
def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge by whom an untrained policy succeeds: a response is right by the parity of its text's checksum."""

    def verdict(response, gold: str) -> Verdict:
        return Verdict(zlib.crc32(response.text.encode()) % 2 == 0, response.text, "checksum")

    for module in (answers, annotate):
        monkeypatch.setattr(module, "judge_response", verdict)
