"""The report: self-contained, escaped, honest on unfinished runs, and real in a browser."""

import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mstar_engine.config_parse import load_config
from mstar_engine.evolve.dynamics import wilson
from mstar_engine.report.html import build_report, write_report
from mstar_engine.report.samples import read_samples
from mstar_engine.reward.answers import judge
from mstar_engine.reward.select import select
from mstar_engine.run_directory import RunDirectory
from mstar_engine.summary import FinalSummary, IterationSummary, Summary, WarmupSummary
from mstar_engine.types import Group, Problem, Response

HOSTILE = (
    """<script>document.title="owned"</script><img src="https://example.com/x.png" onerror="alert(1)">'"&{{ 7 * 7 }}"""
)


class Page(HTMLParser):
    """Collects the tags and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def make_group(name: str, answers: list[str], question: str = "How many?", source: str = "counting") -> Group:
    none = np.zeros(2, np.float32)
    responses = tuple(
        Response(
            sample=sample,
            token_ids=none.astype(np.int32),
            text=f"Look: {answer}\n\n# Answer\n{answer}",
            logprobs=none,
            scaled_logprobs=none,
            filtered_logprobs=none,
            entropy=none,
            finish_reason="stop",
            temperature=1.0,
        )
        for sample, answer in enumerate(answers)
    )
    problem = Problem(id=name, question=question, gold="12", source=source)
    return select(judge(Group(problem=problem, responses=responses, prompt_length=1)), "all")


@pytest.fixture
def run(tmp_path):
    """A finished run of two iterations, with hostile text wherever data can put it."""
    path = tmp_path / "digits <b>&"
    with RunDirectory.create_or_resume(
        load_config(None, [f"output_dir={path}", "model.model_name_or_path=<i>x"])
    ) as directory:
        directory.journal.append("start")
        for iteration in (1, 2):
            with directory.rollout_writer(iteration) as writer:
                writer.write(make_group("all-right", ["12", "12"]))
                writer.write(make_group("mixed", ["12", "13", "13", HOSTILE], question=HOSTILE, source=HOSTILE))
                writer.write(make_group(f"{HOSTILE}/../id", ["13"]))
                writer.finish()
        directory.write_report_image("mixed", Image.new("L", (8, 8), 128))
        (path / "report_images" / "all-right.png").write_bytes(b"<svg onload=alert(1)>")
        row = {"kept": 2, "sampled": 7, "temperature": 1.0, "seconds": 1.0}
        rows = [
            IterationSummary(iteration=i, greedy=wilson(60 + i, 100), pass_at_k=wilson(80, 100), **row) for i in (1, 2)
        ]
        directory.write_summary(
            Summary(
                warmup=WarmupSummary(greedy=wilson(40, 100), ood_greedy=wilson(20, 100)),
                evolve=tuple(rows),
                final=FinalSummary(greedy=wilson(67, 100), ood_greedy=wilson(25, 100)),
                seconds={"evolve": 2.0, HOSTILE: 70.0},
            )
        )
    return path


def test_the_page_is_self_contained_and_escaped(run):
    text = write_report(run).read_text()
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "form", "b2"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        for name in ("src", "href", "xlink:href", "action"):
            assert attributes.get(name, "data:").startswith("data:")
    assert [attributes["src"][:22] for tag, attributes in page.tags if tag == "img"] == ["data:image/png;base64,"]
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


def test_samples_prefer_images_and_mixed_outcomes(run):
    shown = read_samples(run, problems=2)
    assert shown[0].iteration == 2 and any(one.id == "mixed" and one.image for one in shown)
    mixed = next(one for one in read_samples(run) if one.id == "mixed")
    assert (mixed.samples, mixed.correct, mixed.hidden) == (4, 1, 0)
    assert [(r.selected, r.correct, r.times) for r in mixed.responses] == [
        (True, True, 1),
        (False, False, 2),
        (False, False, 1),
    ]
    assert read_samples(run) == read_samples(run)


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


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: the report is not opened in a browser")
@pytest.mark.parametrize("width", [500, 1200])
def test_in_a_browser(run, tmp_path, width):
    path, picture = write_report(run), tmp_path / "page.png"
    switches = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [CHROMIUM, *switches.split(), "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},2000", path.as_uri()]
    page = subprocess.run([*command, "--dump-dom"], capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>digits &lt;b&gt;&amp; - mstar_engine</title>" in page and 'title="owned"' in page
    assert page.count("<svg") == 3
    subprocess.run([*command, f"--screenshot={picture}"], capture_output=True, timeout=120, check=True)
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    # A page that drew nothing has one colour; this one has cards, lines and text all the way down.
    assert pixels.shape[1] == width
    for part in np.array_split(pixels, 5)[:4]:
        assert len(np.unique(part.reshape(-1, 3), axis=0)) > 10
