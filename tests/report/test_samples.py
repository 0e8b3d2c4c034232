"""Which rollouts are shown: every outcome, bounded, the same each time, and one batch in memory at a time."""

import base64
import io
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mstar_engine.report import choose as choosing
from mstar_engine.report import samples as reading
from mstar_engine.report.browser import browser
from mstar_engine.report.choose import Tally, choose, tallies
from mstar_engine.report.picture import SMALL, picture
from mstar_engine.report.samples import read_iterations, read_samples
from runs import RIGHT, WRONG, make_group, scored_group, write_groups, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def outcomes(prefix: str, outcome: str, count: int, source: str = "s") -> dict[str, Tally]:
    right = {"all": 4, "some": 2, "none": 0}[outcome]
    return {f"{prefix}-{outcome}-{i}": Tally(source, 4, 4, right) for i in range(count)}


def test_samples_prefer_images_and_mixed_outcomes(run):
    shown = read_samples(run, problems=2)
    assert shown[0].iteration == 2 and shown[0].id == "mixed" and shown[0].image
    mixed = next(one for one in read_samples(run) if one.id == "mixed")
    assert (mixed.samples, mixed.correct, mixed.hidden, mixed.outcome) == (4, 1, 0, "some")
    assert [(r.selected, r.correct, r.times, r.reason.kind) for r in mixed.responses] == [
        (True, True, 1, "kept"),
        (False, False, 2, "wrong"),
        (False, False, 1, "wrong"),
    ]
    assert read_samples(run) == read_samples(run)


def test_samples_of_one_text_are_one_response(run):
    (one,) = next(one for one in read_samples(run) if one.id == "all-right").responses
    assert one.selected and one.times == 2 and one.reason.words == "the same text counts once"


@pytest.mark.parametrize("batch", [1, 3, 8192])
def test_tallies_do_not_depend_on_batches(run, monkeypatch, batch):
    monkeypatch.setattr(choosing, "_BATCH", batch)
    found = tallies(run / "rollouts" / "iteration_0002.parquet")
    assert sorted((t.samples, t.judged, t.right, t.outcome) for t in found.values()) == [
        (1, 1, 0, "none"),
        (2, 2, 2, "all"),
        (4, 4, 1, "some"),
    ]


def test_the_parts_of_a_file_do_not_matter(run):
    before, file = read_samples(run), run / "rollouts" / "iteration_0002.parquet"
    table = pq.read_table(file)
    pq.write_table(table.take(list(reversed(range(len(table))))), file, row_group_size=2)
    assert read_samples(run) == before
    pq.write_table(table, file, row_group_size=3, write_statistics=False)
    assert read_samples(run) == before


def test_every_outcome_has_its_share():
    found = outcomes("a", "all", 50) | outcomes("b", "some", 50) | outcomes("c", "none", 50)
    chosen = choose(found, 24, lambda name: False)
    assert len(set(chosen)) == 24
    assert Counter(found[name].outcome for name in chosen) == {"some": 12, "all": 6, "none": 6}
    few = outcomes("a", "all", 1) | outcomes("b", "some", 30)
    assert Counter(few[name].outcome for name in choose(few, 24, lambda name: False)) == {"some": 23, "all": 1}
    assert choose(few, 100, lambda name: False) == choose(dict(reversed(few.items())), 100, lambda name: False)
    assert len(choose(few, 100, lambda name: False)) == 31 and choose({}, 5, lambda name: False) == []


def test_pictured_problems_and_sources_take_turns():
    found = outcomes("a", "some", 6, "sum") | outcomes("b", "some", 6, "difference")
    pictured = {"a-some-1", "a-some-2", "b-some-4"}
    chosen = choose(found, 4, pictured.__contains__)
    assert set(chosen[:2]) <= pictured and {found[name].source for name in chosen[:2]} == {"sum", "difference"}
    found = {"open": Tally("s", samples=3), "none": Tally("s", 3, 3, 0)}
    assert found["open"].outcome == "open" and choose(found, 2, lambda name: False) == ["none", "open"]


def test_the_first_iteration_is_shown_beside_the_newest(run, tmp_path):
    newest, first = read_iterations(run)
    assert (newest.iteration, first.iteration) == (2, 1)
    assert (newest.problems, newest.outcomes) == (3, {"some": 1, "all": 1, "none": 1})
    write_groups(tmp_path / "one", make_group("only", ["12"]))
    assert [one.iteration for one in read_iterations(tmp_path / "one")] == [1]
    assert read_iterations(tmp_path / "none") == [] and read_samples(tmp_path / "none") == []


def test_counts_of_the_filters(run):
    view = browser(read_iterations(run))
    assert {one.key: one.counts for one in view.outcomes} == {
        "any": {"any": 6, "0": 3, "1": 3},
        "all": {"any": 2, "0": 1, "1": 1},
        "some": {"any": 2, "0": 1, "1": 1},
        "none": {"any": 2, "0": 1, "1": 1},
    }
    assert [one.words for one in view.iterations] == ["All iterations", "Iteration 2", "Iteration 1"]
    assert view.iterations[1].counts == {"any": 3, "all": 1, "some": 1, "none": 1}
    assert browser([]) is None


def test_what_is_shown_is_bounded(tmp_path, monkeypatch):
    long = "\n\n".join(f"step {i} {'x' * 90}" for i in range(100)) + "\n\n# Answer 12"
    rows = [(f"{i}\n\n{long}", i == 0, (0.5,) * 102) for i in range(40)]
    groups = [scored_group(f"p{i:02d}", rows) for i in range(5)]
    write_groups(tmp_path, *groups)
    one = read_samples(tmp_path, problems=1)[0]
    assert (len(one.responses), len(one.more), one.hidden) == (3, 13, 24)
    for response in one.responses + one.more:
        assert len(response.text) == 6000 and response.cut > 4000
        assert 50 < len(response.steps) < 70
    assert len(read_samples(tmp_path, budget=3 * one.size + 10)) == 3
    assert len(read_samples(tmp_path, budget=10)) == 1
    monkeypatch.setattr(reading, "BUDGET", 2 * one.size)
    (shown,) = read_iterations(tmp_path)
    assert len(shown.shown) == 2 and shown.problems == 5


def test_short_responses_are_not_cut(tmp_path):
    write_groups(tmp_path, scored_group("one", [(RIGHT, True, (0.9, 0.9, 0.9)), (WRONG, False, (0.1, 0.1, 0.1))]))
    assert [r.cut for r in read_samples(tmp_path)[0].responses] == [0, 0]


def test_large_pictures_are_shrunk(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (900, 1300, 4), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    Image.new("L", (60, 60), 128).save(tmp_path / "small.png")
    kind, data = picture(tmp_path / "large.png").split(";base64,")
    seen = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == "data:image/jpeg" and max(seen.size) == 420 and len(data) < 200_000
    small = picture(tmp_path / "small.png").split(";base64,")
    assert small[0] == "data:image/png" and base64.b64decode(small[1]) == (tmp_path / "small.png").read_bytes()
    (tmp_path / "broken.png").write_bytes((tmp_path / "large.png").read_bytes()[: SMALL + 100])
    (tmp_path / "text.png").write_bytes(b"<svg onload=alert(1)>")
    assert [picture(tmp_path / name) for name in ("broken.png", "text.png", "absent.png")] == [None] * 3
