"""What a process reward model adds to the report: coloured steps, its card, the verifier's table, the third line."""

import json
import re
from dataclasses import asdict, replace

import pytest

from mstar_engine.config_parse import load_config
from mstar_engine.evolve.dynamics import wilson
from mstar_engine.report.html import build_report
from mstar_engine.report.samples import read_samples
from mstar_engine.report.steps import BANDS, shown_steps
from mstar_engine.report.verifier import verifier_table
from mstar_engine.report.words import kept_responses
from mstar_engine.run_directory import RunDirectory
from mstar_engine.summary import IterationSummary, Summary, WarmupSummary
from runs import HOSTILE, LUCKY, PRM, RIGHT, WRONG, scored_group, votes, write_groups, write_run


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run", prm=True)


def responses_of(text: str) -> list[str]:
    """The HTML of each response."""
    return [part.split("</article>")[0] for part in text.split('<div class="response ')[1:]]


def test_steps_are_cut_where_they_were_scored():
    steps = shown_steps("\n\na <step> b\n\nc\n\n\n\nd", (0.0, 0.999, 1.0), "\n\n", 0)
    assert [(s.text, s.band, s.weakest) for s in steps] == [
        ("a <step> b", 0, True),
        ("c", BANDS - 1, False),
        ("d", BANDS - 1, False),
    ]
    assert [s.text for s in shown_steps("a<step>b<step>c<step>d", (0.1, 0.2), "<step>", 2)] == [
        "a<step>b<step>",
        "c<step>d",
    ]


def test_the_weakest_is_one_step():
    assert [s.weakest for s in shown_steps("a\n\nb\n\nc", (0.5, 0.2, 0.2), "\n\n", 0)] == [False, True, False]
    assert [s.weakest for s in shown_steps("a", (1.0,), "\n\n", 0)] == [True]


@pytest.mark.parametrize("scores", [None, (), (0.5,), (0.5, 0.5, 0.5), (0.5, 1.5), (0.5, float("nan")), (0.5, None)])
def test_scores_that_do_not_fit_colour_nothing(scores):
    assert shown_steps("a\n\nb", scores, "\n\n", 0) == ()


def test_every_coloured_response_marks_its_weakest_step_once(run):
    text = build_report(run)
    coloured = [part for part in responses_of(text) if "<ol" in part]
    # The three at once, two more on demand; the same again in the other iteration.
    scores = [["0.91"], ["0.04"], ["0.12"], ["0.81"], ["0.07"]] * 2
    assert [re.findall(r"weakest (\d\.\d\d)</span>", part) for part in coloured] == scores
    assert [re.findall(r"score <b>(\d\.\d\d)", part) for part in coloured] == scores
    assert [part.count(' weak"') for part in coloured] == [1] * 10
    assert '4 + 7 = 12</span> <span class="tag weakest">weakest 0.04' in text


def test_the_lucky_and_the_commonest_wrong_answer_are_shown(run):
    scored = next(one for one in read_samples(run) if one.id == "scored")
    assert [r.text for r in scored.responses] == [RIGHT, LUCKY, WRONG]
    assert [(r.selected, r.correct, r.lucky, r.score, r.times) for r in scored.responses] == [
        (True, True, False, 0.91, 1),
        (False, True, True, 0.04, 1),
        (False, False, False, 0.12, 2),
    ]
    assert len(scored.more) == 3 and scored.hidden == 0


def test_lucky_problems_come_first(tmp_path):
    plain = [scored_group(f"plain-{i}", [(RIGHT, True, (0.9, 0.9, 0.9)), (WRONG, False, None)]) for i in range(8)]
    write_groups(tmp_path, *plain, scored_group("lucky", [(LUCKY, False, (0.9, 0.1, 0.9)), (WRONG, False, None)]))
    assert read_samples(tmp_path, problems=1)[0].id == "lucky"


def test_hostile_steps_are_escaped(tmp_path):
    rows = [(f"{HOSTILE}\n\n</li></ol>{HOSTILE}\n\n# Answer 12", True, (0.9, 0.1, 0.9))]
    write_groups(tmp_path, scored_group("one", rows))
    text = build_report(tmp_path)
    assert text.count('<li class="step ') == 3 and text.count("</li>") == 3
    assert "<script" not in text and text.count("<img") == 0 and "&lt;/li&gt;&lt;/ol&gt;&lt;script&gt;" in text


def test_steps_of_another_number_are_shown_whole_with_their_score(tmp_path):
    write_groups(tmp_path, scored_group("one", [(RIGHT, True, (0.9, 0.33))]))
    text = build_report(tmp_path)
    (part,) = responses_of(text)
    assert "<ol" not in part and f"<pre>{RIGHT}</pre>" in part and "score <b>0.33</b>" in part
    assert "may be luck" not in text
    (problem,) = read_samples(tmp_path, max_steps=2)
    assert [s.text for s in problem.responses[0].steps] == ["gold 5 and 7", "5 + 7 = 12\n\n# Answer 12"]


def test_without_a_prm_nothing_of_it_is_shown(tmp_path):
    text = build_report(write_run(tmp_path / "run"))
    body = text[text.index("<body>") :]
    body = body.replace("best-scored correct responses", "")  # what the configuration asked for
    for part in ("PRM", "rocess reward model", "Reward-Pass", "weakest", "<ol", "score", "third"):
        assert part not in body


def test_the_card_says_what_was_learned_and_what_it_cost(run):
    text = build_report(run)
    card = text[text.index('<section class="card prm">') :].split("</section>")[0]
    for part in ("12,345", "62.5%", "4,321", "678", "0.91", "0.63", "0.82", "55.1%", "74.1%", "98,760"):
        assert f"<dd>{part}</dd>" in card
    for part in ("1,234,567", "2,345,678", "1 min 35 s"):
        assert f"<dd>{part}</dd>" in card
    assert "987 held-out steps, 60.0% good; threshold 0.47" in card and "two class head" in card
    assert "the more of the attempts" in card and "annotate steps" in text


def test_a_prm_before_the_first_iteration(tmp_path):
    prm = asdict(replace(PRM, held_out=replace(PRM.held_out, auc=None)))
    with RunDirectory.create_or_resume(load_config(None, [f"output_dir={tmp_path}"])) as directory:
        directory.write_summary({"prm": prm})
    text = build_report(tmp_path)
    assert "needs held-out steps of both kinds" in text and "as a verifier" not in text and "Unfinished" in text


def test_the_table_has_every_measurement(run):
    text = build_report(run)
    table = text[text.index('<table class="verifier">') :].split("</table>")[0]
    rows = [row for row in table.split("<tr>")[2:]]
    assert [re.search(r'<th scope="row">(\d+)', row).group(1) for row in rows] == ["1", "2", "8"]
    assert [re.findall(r'"value">([\d.]+)%', row) for row in rows] == [
        ["50.5", "50.5", "50.5"],
        ["55.0", "55.0", "50.0"],
        ["60.5", "66.5", "63.5"],
    ]
    assert [re.findall(r"warm-up ([\d.]+)%", row) for row in rows] == [["38.5"] * 3, [], ["40.5", "41.5", "43.5"]]
    assert [row.count('class="best"') for row in rows] == [0, 2, 1]
    low, high = wilson(133, 200).low, wilson(133, 200).high
    assert (
        f'<td class="best"><span class="value">66.5%</span><small>{100 * low:.1f} to {100 * high:.1f}</small>' in table
    )
    assert "iteration 2" in text and "Greedy, for comparison: <b>62.0%</b>" in text


def test_the_newest_measured_iteration_is_tabled():
    row = {"kept": 1, "sampled": 1, "temperature": 1.0, "seconds": 1.0}
    half = wilson(1, 2)
    start = WarmupSummary(greedy=half, validation_greedy=wilson(1, 4), verifier={4: votes(1, 2, 3)})
    rows = tuple(
        IterationSummary(iteration=i, greedy=half, verifier={10: votes(i, 2, 3)} if i < 3 else None, **row)
        for i in (1, 2, 3)
    )
    assert verifier_table(Summary()) is None and verifier_table(Summary(evolve=rows[2:])) is None
    table = verifier_table(Summary(warmup=start))
    assert (table.iteration, table.greedy, table.greedy_before) == (0, wilson(1, 4), None)
    assert [cell.before for cell in table.rows[0][1]] == [None] * 3
    table = verifier_table(Summary(warmup=start, evolve=rows))
    assert (table.iteration, table.rows[0][0], table.greedy_before) == (2, 10, wilson(1, 4))
    assert verifier_table(Summary(evolve=rows)).greedy_before is None


def test_ks_are_in_order_of_number(run):
    path = run / "summary.json"
    summary = json.loads(path.read_text())
    verifier = summary["evolve"][-1]["verifier"]
    summary["evolve"][-1]["verifier"] = {key: verifier["8"] for key in ("8", "16", "1")}
    path.write_text(json.dumps(summary))
    table = build_report(run).split('<table class="verifier">')[1].split("</table>")[0]
    assert re.findall(r'<th scope="row">(\d+)</th>', table) == ["1", "8", "16"]


def test_reward_pass_is_a_line_with_a_name(run):
    text = build_report(run)
    assert text.count('<circle class="dot third"') == 2 * 3 and '">Reward-Pass@2</text>' in text
    assert "Accuracy by iteration: Pass@8, Reward-Pass@2, greedy" in text


@pytest.mark.parametrize(
    ("select", "words"),
    [
        ({"kind": "all", "k": 2}, "every distinct correct response"),
        ({"kind": "random", "k": 2}, "2 of the correct responses at random"),
        ({"kind": "random", "k": 2, "alpha": None}, "2 of the correct responses at random"),
        ({"kind": "top_k", "k": 3}, "the 3 best-scored correct responses"),
        (
            {"kind": "top_k", "k": 3, "alpha": 0.2},
            "the 3 best-scored correct responses that score above 0.2",
        ),
        ({"kind": "threshold", "alpha": 0.5}, "every distinct correct response that score above 0.5"),
        ({"kind": "other"}, "some of the correct responses"),
    ],
)
def test_the_selection_in_words(select, words):
    assert kept_responses(select) == words
