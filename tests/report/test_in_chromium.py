"""The pages in a real browser: they draw, stay within any width, ask the network for nothing, and filter."""

import numpy as np
import pytest
from PIL import Image

from chromium import addresses, in_chromium, look, visit
from mstar_engine.report.compare import build_comparison, write_comparison
from mstar_engine.report.html import build_report, write_report
from runs import write_rich_run, write_run

pytestmark = in_chromium

# What sticks out of the page to the right and is not inside a box of its own that scrolls.
STICKS_OUT = """
    const over = e => e.getBoundingClientRect().right > d.documentElement.clientWidth + 1 && !e.closest(".scroll");
    return {over: d.documentElement.scrollWidth - d.documentElement.clientWidth,
            wide: [...d.querySelectorAll("main *")].filter(over).map(e => e.outerHTML).slice(0, 3)};
"""
FILTERS = """
    const seen = selector => [...d.querySelectorAll(selector)].filter(e => e.getClientRects().length);
    const states = {};
    for (const choice of ["", ...%s]) {
        if (choice) d.getElementById(choice).click();
        const checked = [...d.querySelectorAll("input:checked")].map(e => d.querySelector(`label[for="${e.id}"]`));
        states[choice] = {problems: seen(".problem").length, kinds: [...new Set(seen(".problem").map(
            e => [...e.classList].filter(c => /^i[sn]-/.test(c)).join(" ")))].sort(),
            said: checked.map(label => label.innerText.trim())};
    }
    const last = d.getElementById("only-none");
    last.focus();
    return {states, focused: d.activeElement === last, width: getComputedStyle(last).display};
"""


@pytest.fixture(params=["report", "rich", "comparison"])
def page(request, tmp_path):
    """A page of each kind, as a file."""
    name = tmp_path / "digits <b>&"
    if request.param == "report":
        return write_report(write_run(name))
    rich = write_rich_run(name)
    if request.param == "rich":
        return write_report(rich)
    return write_comparison([rich, write_run(tmp_path / "other"), rich], tmp_path / "compare.html")


@pytest.mark.parametrize("width", [500, 1280])
def test_a_page_is_drawn(page, tmp_path, width):
    picture = tmp_path / "page.png"
    visit(tmp_path, page.as_uri(), width, f"--screenshot={picture}", "--hide-scrollbars")
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    # A page that drew nothing has one colour; these have cards, lines and text all the way down.
    assert pixels.shape[1] == width
    for part in np.array_split(pixels, 5)[:3]:
        assert len(np.unique(part.reshape(-1, 3), axis=0)) > 10


def test_a_page_asks_for_nothing_but_itself(page, tmp_path):
    assert addresses(tmp_path, page.as_uri()) == []


def test_what_a_page_asks_for_is_seen(tmp_path):
    (tmp_path / "page.html").write_text("<img src='http://example.invalid/x.png'>")
    assert addresses(tmp_path, (tmp_path / "page.html").as_uri()) == ["http://example.invalid/x.png"]
    policy = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:">"""
    (tmp_path / "page.html").write_text(f"{policy}<img src='http://example.invalid/x.png'>")
    with pytest.raises(AssertionError, match="CONSOLE"):  # a page with our policy asks for nothing, and says so
        visit(tmp_path, (tmp_path / "page.html").as_uri(), 600, "--dump-dom")


def test_hostile_texts_stay_texts(page, tmp_path):
    shown = visit(tmp_path, page.as_uri(), 1280, "--dump-dom")
    assert "<title>owned" not in shown and "<script" not in shown
    assert "</main>" in shown


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("kind", ["report", "comparison"])
def test_nothing_sticks_out(tmp_path, kind, width):
    rich = write_rich_run(tmp_path / ("a-name-without-an-end-" * 8))
    text = build_report(rich) if kind == "report" else build_comparison([rich, write_run(tmp_path / "b", prm=True)] * 4)
    assert look(tmp_path, text, STICKS_OUT, width) == {"over": 0, "wide": []}


def test_filters_filter(tmp_path):
    choices = ["only-all", "only-some", "of-1", "only-any", "of-0", "only-none"]
    seen = look(tmp_path, build_report(write_rich_run(tmp_path / "run")), FILTERS % choices, 1280)
    everything = [f"is-{o} in-{i}" for o in ("all", "none", "some") for i in (0, 1)]
    assert seen["states"] == {
        "": {"problems": 8, "kinds": everything, "said": ["All 8", "All iterations 8"]},
        "only-all": {
            "problems": 2,
            "kinds": ["is-all in-0", "is-all in-1"],
            "said": ["Solved by all 2", "All iterations 2"],
        },
        "only-some": {
            "problems": 4,
            "kinds": ["is-some in-0", "is-some in-1"],
            "said": ["Solved by some 4", "All iterations 4"],
        },
        "of-1": {"problems": 2, "kinds": ["is-some in-1"], "said": ["Solved by some 2", "Iteration 1 2"]},
        "only-any": {
            "problems": 4,
            "kinds": ["is-all in-1", "is-none in-1", "is-some in-1"],
            "said": ["All 4", "Iteration 1 4"],
        },
        "of-0": {
            "problems": 4,
            "kinds": ["is-all in-0", "is-none in-0", "is-some in-0"],
            "said": ["All 4", "Iteration 2 4"],
        },
        "only-none": {"problems": 1, "kinds": ["is-none in-0"], "said": ["Unsolved 1", "Iteration 2 1"]},
    }
    # A keyboard reaches what can have the focus; a radio that is not drawn at all could not.
    assert seen["focused"] and seen["width"] != "none"


def test_filters_of_a_single_iteration(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "rollouts" / "iteration_0001.parquet").unlink()
    seen = look(tmp_path, build_report(run), FILTERS % ["only-some"], 1280)
    assert seen["states"][""] == {
        "problems": 3,
        "kinds": ["is-all in-0", "is-none in-0", "is-some in-0"],
        "said": ["All 3"],
    }
    assert seen["states"]["only-some"] == {"problems": 1, "kinds": ["is-some in-0"], "said": ["Solved by some 1"]}
