"""Counts of verdicts by reason, and of the LaTeX comparisons that ran into their limits, by stage and sitting."""

from dataclasses import replace

import numpy as np
import pytest

from mstar_engine.config_parse import load_config
from mstar_engine.evolve.session import closing_lines
from mstar_engine.evolve.verdict_counts import compared_since, counts_by_reason, latex_counted, latex_total
from mstar_engine.journal import Journal
from mstar_engine.reward import latex
from mstar_engine.types import Response

WORKER = """
import json, os, sys, time
print("ready", flush=True)
for line in sys.stdin:
    answer, gold = json.loads(line)
    if answer == "hang":
        time.sleep(600)
    if answer == "die":
        os._exit(1)
    print("match" if answer == gold else "mismatch", flush=True)
"""


@pytest.fixture
def workers(tmp_path, monkeypatch):
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(latex, "_WORKER", tmp_path / "worker.py")
    monkeypatch.setattr(latex, "installed", lambda: True)
    latex.use(1, 60.0)
    yield
    latex.use(1, latex.SECONDS)


def test_reasons_are_counted_the_commonest_first():
    none = np.zeros(1, np.float32)
    one = Response(
        sample=0, token_ids=none.astype(np.int32), text="", logprobs=none, scaled_logprobs=none,
        filtered_logprobs=none, entropy=none, finish_reason="stop", temperature=1.0,
    )  # fmt: skip
    given = ["match", "mismatch", None, "mismatch", "no answer", "mismatch", "match"]
    counts = counts_by_reason([replace(one, reason=reason) for reason in given])
    assert list(counts.items()) == [("mismatch", 3), ("match", 2), ("no answer", 1)]
    assert counts_by_reason([]) == {}


def test_limits_are_counted_over_stages_and_sittings(workers, tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")
    assert latex_total(journal) is None
    with latex_counted(journal, "warmup"):
        pass  # nothing was compared: nothing to say
    assert journal.last("latex") is None
    with latex_counted(journal, "warmup"):
        assert latex.compare("1", "1") == "match" and latex.compare("die", "1") == "comparison failed"
    with pytest.raises(KeyboardInterrupt), latex_counted(journal, "evolve"):
        before = latex.counts()
        latex.workers().seconds = 0.2
        assert latex.compare("hang", "1") == "timeout"
        assert compared_since(before) == {"comparisons": 1, "timeouts": 1, "crashes": 0}
        assert compared_since(before, {"comparisons": 4, "timeouts": 1, "crashes": 2}) == {
            "comparisons": 5, "timeouts": 2, "crashes": 2,
        }  # fmt: skip
        raise KeyboardInterrupt
    journal.close()
    again = Journal(tmp_path / "journal.jsonl")
    assert again.last("latex", stage="warmup")["crashes"] == 1
    assert latex_total(again) == {"comparisons": 3, "timeouts": 1, "crashes": 1}
    assert compared_since(latex.counts()) is None


def test_closing_lines_name_them_when_there_are_any(tmp_path):
    config = load_config(None, [f"output_dir={tmp_path}", "answers.latex_timeout=2.5"])
    summary = {"warmup": None, "final": None, "seconds": {"evolve": 2.0}}
    assert "LaTeX" not in closing_lines(config, summary | {"latex": None})
    assert "LaTeX" not in closing_lines(config, summary | {"latex": {"comparisons": 9, "timeouts": 0, "crashes": 0}})
    said = closing_lines(config, summary | {"latex": {"comparisons": 1234, "timeouts": 3, "crashes": 0}})
    assert "of 1,234, 3 were stopped at answers.latex_timeout=2.5 seconds and 0 failed" in said
