"""Problems that say what kind of answer they have, through judging, voting, pseudo-labels and files."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from mstar_engine.answer_type import AnswerType
from mstar_engine.config import PromptsConfig
from mstar_engine.evolve.dynamics import vote_accuracy
from mstar_engine.evolve.pseudo_labels import pseudo_label, pseudo_summary
from mstar_engine.reward import latex
from mstar_engine.reward.answers import bare_answer, judge, judge_response, judge_text
from mstar_engine.reward.gold_check import refuse_unreadable
from mstar_engine.reward.vote import majority_vote
from mstar_engine.rollout_file import SCHEMA, RolloutWriter, group_table, read_rollouts
from mstar_engine.table_file import TableWriter
from mstar_engine.types import PSEUDO, Group, Problem, Response

FLOAT = AnswerType(kind="float", precision=1, units=("cm",))
CHOICE = AnswerType(kind="choice", choices=("a cat", "a dog"), extract=("boxed",))


def group_of(texts, gold, answer_type, **fields) -> Group:
    none = np.zeros(1, np.float32)
    responses = tuple(
        Response(
            sample=sample, token_ids=np.ones(1, np.int32), text=text, logprobs=none, scaled_logprobs=none,
            filtered_logprobs=none, entropy=none, finish_reason="stop", temperature=1.0,
        )
        for sample, text in enumerate(texts)
    )  # fmt: skip
    problem = Problem(id=fields.pop("id", "p"), question="?", gold=gold, answer_type=answer_type, **fields)
    return Group(problem=problem, responses=responses, prompt_length=1)


def test_judging_follows_the_type():
    texts = ["# Answer\n2.5 cm", "The answer is 5/2", "\\boxed{2.46}", "# Answer\n2.6", "2.5", "# Answer\n"]
    judged = judge(group_of(texts, "2.5", FLOAT))
    assert [response.correct for response in judged.responses] == [True, True, True, False, False, False]
    assert [response.answer for response in judged.responses] == ["2.5 cm", "5/2", "2.46", "2.6", None, None]
    assert [response.reason for response in judged.responses] == [
        "match", "match", "match", "mismatch", "no answer", "empty answer",
    ]  # fmt: skip
    unlabelled = judge(group_of(texts, None, FLOAT))
    assert [response.answer for response in unlabelled.responses] == ["2.5 cm", "5/2", "2.46", "2.6", None, None]
    assert {(response.correct, response.reason) for response in unlabelled.responses} == {(None, None)}


def test_a_typed_response_that_was_cut_is_wrong():
    (response,) = group_of(["# Answer\n2.5"], "2.5", FLOAT).responses
    verdict = judge_response(replace(response, finish_reason="length"), "2.5", FLOAT)
    assert (verdict.correct, verdict.reason, verdict.where) == (False, "unfinished (length)", "section")


def test_a_gold_that_its_type_cannot_read_is_refused():
    with pytest.raises(ValueError, match=r"reference answer '2.5 m': more than a number; needed: float"):
        judge_text("# Answer\n2.5", "2.5 m", FLOAT)
    problems = [
        Problem(id=name, question="?", gold=gold, answer_type=CHOICE) for name, gold in [("a", "A"), ("b", "a cow")]
    ]
    refuse_unreadable([problems[0], Problem(id="c", question="?", gold="anything")], "training set")
    with pytest.raises(ValueError, match=r"training set: 1 reference answers cannot be used: b \(.*not a choice"):
        refuse_unreadable(problems, "training set")


@pytest.mark.parametrize("rules", [("section",), ("heading",), ("boxed",), ("letter",), ("whole",)])
def test_a_bare_answer_is_found_where_its_type_looks(rules):
    kind = AnswerType(kind="choice", extract=rules)
    assert judge_text(bare_answer("B", kind), "B", kind).correct
    assert bare_answer("B") == "# Answer B"


def test_votes_and_pseudo_labels_follow_the_type():
    texts = ["\\boxed{B}", "\\boxed{a cat}", "\\boxed{(B) a dog}", "\\boxed{a dog}", "\\boxed{a cow}", "\\boxed{A}"]
    vote = majority_vote(judge(group_of(texts, "B", CHOICE)))
    assert (vote.answer, vote.support, vote.share, vote.margin) == ("B", 3, 3 / 5, 1 / 5)
    assert vote_accuracy([judge(group_of(texts, "a dog", CHOICE))], "majority").value == 1.0
    config = PromptsConfig(unlabelled="pseudo", vote="majority")
    labelled = pseudo_label(group_of(texts, None, CHOICE, label=PSEUDO, truth="a dog"), config)
    assert labelled.problem.gold == "B" and judge(labelled).responses[3].correct
    assert pseudo_summary([labelled], config).accuracy.value == 1.0


def test_types_are_kept_with_rollouts(tmp_path):
    path = tmp_path / "rollouts.parquet"
    typed, plain = group_of(["x"], "2.5", FLOAT, id="b"), group_of(["x"], "12", None, id="a")
    with RolloutWriter(path, 0) as writer:
        writer.write(typed, plain)
        assert [group.problem.answer_type for group in writer.groups()] == [None, FLOAT]
        writer.finish()
    assert [group.problem.answer_type for group in read_rollouts(path)] == [None, FLOAT]
    assert pq.read_table(path)["answer_type"].to_pylist() == [
        None,
        '{"kind": "float", "precision": 1, "units": ["cm"]}',
    ]
    given = {"b": replace(typed.problem, answer_type=CHOICE)}  # the data set's, which may have been corrected since
    assert [group.problem.answer_type for group in read_rollouts(path, given)] == [None, CHOICE]


@pytest.mark.skipif(not latex.installed(), reason="needs math-verify")
@pytest.mark.parametrize("workers", [1, 2])
def test_latex_is_judged_side_by_side_in_order(workers):
    latex.use(workers, 60.0)
    texts = ["# Answer\n0.5", "# Answer\n\\frac{2}{4}", "# Answer\n2", "nothing", "# Answer\n\\frac{", "# Answer\n1/2"]
    judged = judge(group_of(texts, "\\frac{1}{2}", AnswerType(kind="latex")))
    assert [response.correct for response in judged.responses] == [True, True, False, False, False, True]
    assert judged.responses[3].reason == "no answer" and latex.counts().comparisons == 5
    latex.use(1, latex.SECONDS)


@pytest.mark.parametrize("missing", [["reason"], ["answer_type"], ["answer_type", "label", "truth"]])
def test_a_phase_that_an_older_version_began_goes_on(tmp_path, missing):
    path = tmp_path / "rollouts.parquet"
    old, new = group_of(["x"], "12", None, id="b"), group_of(["x"], "2.5", FLOAT, id="a")
    table = group_table(old, 0).drop_columns(missing)
    with TableWriter(path, table.schema) as writer:
        writer.append(table)
    with RolloutWriter(path, 0) as writer:
        writer.write(new)
        writer.finish()
    assert pq.read_table(path).schema.equals(SCHEMA)
    groups = read_rollouts(path)
    assert [group.problem.answer_type for group in groups] == [FLOAT, None]
    assert [group.problem.label for group in groups] == ["gold", "gold"]
    assert [response.reason for group in groups for response in group.responses] == [None, None]


def test_reasons_are_kept_with_rollouts(tmp_path):
    path = tmp_path / "rollouts.parquet"
    judged = judge(group_of(["# Answer\n2.5", "# Answer\nmany", "no"], "2.5", FLOAT))
    with RolloutWriter(path, 0) as writer:
        writer.write(judged)
        writer.finish()
    (group,) = read_rollouts(path)
    assert [response.reason for response in group.responses] == ["match", "not a number", "no answer"]
    pq.write_table(pq.read_table(path).drop_columns(["reason"]), path)  # as an earlier version finished it
    assert [response.reason for response in read_rollouts(path)[0].responses] == [None] * 3
