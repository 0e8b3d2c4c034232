"""The comparison of runs, and the command that writes the pages."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mstar_engine.config_parse import load_config
from mstar_engine.report.__main__ import main
from mstar_engine.report.compare import build_comparison, distinct_names
from mstar_engine.run_directory import RunDirectory
from runs import HOSTILE, write_rich_run, write_run

ROOT = Path(__file__).parents[2]


@pytest.fixture
def runs(tmp_path):
    """A run with everything, a bare one with hostile texts for a name and in its configuration, and an empty one."""
    hostile = tmp_path / HOSTILE.replace("/", "_")
    RunDirectory.create_or_resume(load_config(None, [f"output_dir={tmp_path / 'empty'}", "select.kind=all"])).close()
    write_run(hostile)
    with open(hostile / "config.yaml", "a") as file:
        file.write(json.dumps({f"later {HOSTILE}": HOSTILE})[1:-1] + "\n")
    return [write_rich_run(tmp_path / "rich"), hostile, tmp_path / "empty"]


def test_every_run_is_on_the_page(runs):
    text = build_comparison(runs)
    assert "3 runs side by side" in text and "unfinished: 0 iterations" in text
    assert text.count("finished</span>") == 2
    numbers = text[text.index('<table class="numbers">') :].split("</table>")[0].split("<tr>")[2:]
    cells = [re.findall(r"<td>([^<]*)", one) for one in numbers]
    assert [[cell.strip() for cell in one] for one in cells] == [
        ["67.0%", "25.0%", "14", "4", "2 min 47 s"],
        ["67.0%", "25.0%", "14", "4", "1 min 12 s"],
        ["-", "-", "0", "0", "-"],
    ]
    # Two figures of two runs, each for two widths; the diamonds are the warmed-up policies and their key.
    assert text.count('<path class="reference"') == 2 * 2 * 3
    assert "Reward-Pass@2" in text and text.count("<h3>") == 3


def test_curves_have_the_numbers_of_their_runs(runs):
    text = build_comparison(runs)
    greedy = text[text.index("<h3>Greedy") :].split("<h3>")[1].split("</svg>")[0]
    assert set(re.findall(r'class="end (c\d)"[^>]*>(\d+)<', greedy)) == {("c0", "1"), ("c1", "2")}
    assert greedy.count("<circle") == 6 and greedy.count("<polygon") == 2
    many = build_comparison([runs[0]] * 5)
    assert "<polygon" not in many and "1, iteration 2: 62.0% (52.2 to 70.9)" in many and "bands are left out" in many


def test_differing_keys_are_told_with_their_runs(runs):
    text = build_comparison(runs)
    part = text[text.index('<dl class="differences">') :].split("</dl>")[0]
    told = {
        re.search(r"<code>(.*?)</code>", one).group(1): [
            (re.findall(r">(\d)</b>", choice), re.search(r"<code>(.*?)</code>", choice).group(1))
            for choice in one.split('<span class="choice">')[1:]
        ]
        for one in part.split("<dt>")[1:]
    }
    escaped = "&lt;script&gt;"
    (later,) = [key for key in told if key.startswith("later")]
    assert escaped in later and told.pop(later)[0] == (["1", "3"], "(absent)")
    assert told == {
        "model.model_name_or_path": [(["1", "2"], "&lt;i&gt;x"), (["3"], "tiny")],
        "select.kind": [(["1", "2"], "top_k"), (["3"], "all")],
    }
    assert "Nowhere, except in the folder" in build_comparison([runs[0], runs[0]])


def test_hostile_texts_are_escaped(runs):
    text = build_comparison(runs)
    assert "<script" not in text and "<img" not in text and "{{ 7 * 7 }}" in text
    assert not re.search(r"<[^>]*\son\w+=", text.split("<body>")[1])


def test_names_tell_runs_apart():
    assert distinct_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert distinct_names([Path("/a/run"), Path("/b/run"), Path("/b/other")]) == ["a/run", "b/run", "other"]
    assert distinct_names([Path("/a/x"), Path("/a/x")]) == ["x", "x"]


def test_the_command_writes_the_pages(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(runs[0])]) == 0 and "<h1>rich</h1>" in (runs[0] / "report.html").read_text()
    assert main([str(runs[0]), "--output", "one.html"]) == 0 and Path("one.html").is_file()
    assert main([str(run) for run in runs]) == 0 and "3 runs" in Path("compare.html").read_text()
    assert main([str(runs[0]), str(runs[2]), "--output", "two.html"]) == 0 and "2 runs" in Path("two.html").read_text()
    assert capsys.readouterr().out.splitlines() == [
        str(runs[0] / "report.html"),
        "one.html",
        "compare.html",
        "two.html",
    ]
    assert main([str(runs[0]), str(runs[2]), "--output", "nowhere/x.html"]) == 1
    assert capsys.readouterr().err.startswith("mstar_engine.report: nowhere/x.html: ")


def test_no_run_is_one_line(runs, tmp_path):
    for given in ([tmp_path / "no"], [runs[0], tmp_path]):
        done = subprocess.run(
            [sys.executable, "-m", "mstar_engine.report", *map(str, given)],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr == f"mstar_engine.report: {given[-1]}: no run directory (no config.yaml in it)\n"
    assert not (tmp_path / "compare.html").exists()


@pytest.mark.parametrize("text", ["[1, 2]\n", "a: [\n", "", "evaluate:\n"])
def test_a_configuration_that_is_none(runs, text, capsys):
    (runs[0] / "config.yaml").write_text(text)
    assert main([str(runs[0])]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_summary_that_cannot_be_read(runs, capsys):
    (runs[0] / "summary.json").write_text(json.dumps({"evolve": 3}))
    assert main([str(runs[0])]) == 2 and "summary.json: evolve" in capsys.readouterr().err
