"""The report: self-contained, escaped, honest on unfinished runs."""

from html.parser import HTMLParser

import pytest

from mstar_engine.config_parse import load_config
from mstar_engine.evolve.dynamics import wilson
from mstar_engine.report.html import build_report, write_report
from mstar_engine.run_directory import RunDirectory
from mstar_engine.summary import Summary, WarmupSummary
from runs import write_rich_run, write_run


class Page(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(params=["plain", "prm", "rich"])
def run(request, tmp_path):
    """A finished run: bare, with a process reward model, with everything."""
    path = tmp_path / "digits <b>&"
    return write_rich_run(path) if request.param == "rich" else write_run(path, prm=request.param == "prm")


def test_the_page_is_self_contained_and_escaped(run):
    text = write_report(run).read_text()
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "b2"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    images = [attributes["src"][:22] for tag, attributes in page.tags if tag == "img"]
    assert images == ["data:image/png;base64,"] * 2  # one problem has an image, and is shown of both iterations
    assert "&lt;script&gt;" in text and "{{ 7 * 7 }}" in text and "url(" not in text


def test_the_page_says_what_matters(run):
    text = build_report(run)
    for part in (
        "40.0%",
        "67.0%",
        "+27.0 points",
        "the 95% intervals lie apart",
        "+5.0 points",
        "the 95% intervals overlap",
    ):
        assert part in text
    assert "1 min 10 s" in text and "1 of 4 right" in text and "2 times" in text


def test_an_unfinished_run_has_a_report(tmp_path):
    RunDirectory.create_or_resume(load_config(None, [f"output_dir={tmp_path}"])).close()
    text = build_report(tmp_path)
    assert "Unfinished" in text and "Nothing measured yet" in text
    with RunDirectory.create_or_resume(load_config(None, [f"output_dir={tmp_path}"]), resume=True) as run:
        run.write_summary(Summary(warmup=WarmupSummary(greedy=wilson(40, 100))))
    assert "it answers 40.0% of the test problems right (30.9% to 49.8%)" in build_report(tmp_path)


def test_a_run_of_another_version_has_a_report(run):
    text = (run / "config.yaml").read_text().replace("evaluate:", "older: {key: 3}\nevaluate:")
    (run / "config.yaml").write_text(text)
    assert "older.key" in build_report(run)


def test_no_run_directory(tmp_path):
    with pytest.raises(ValueError, match="no run directory"):
        build_report(tmp_path)
