"""The accuracies of a problem set by category, their mean over sets, and the tables that say so."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from judged_groups import make_group

from mstar_engine.answer_type import AnswerType
from mstar_engine.config_parse import LATER, ConfigError, config_hash, load_config
from mstar_engine.data.formats import FORMATS
from mstar_engine.evaluation_tables import cell, markdown, metric_title, write_tables
from mstar_engine.evolve.benchmark_metrics import (
    benchmark_summary,
    mean_accuracies,
    powers_of_two,
    published_type,
    published_verdicts,
)
from mstar_engine.evolve.evaluate import (
    EVENT,
    all_lines,
    answers_in_words,
    check_evaluation,
    evaluation_of,
    final_of,
    prompts_in_words,
    stages_left,
)
from mstar_engine.evolve.intervals import mean_of, wilson
from mstar_engine.journal import Journal
from mstar_engine.summary import ALL, EvaluationSummary
from mstar_engine.types import Estimate, Problem

HOSTILE = "a|b\nc\r\n\x1b[31m\u2028| --- |\n# d <img src=x> `e` [f](g) \\"


def of_category(group, source: str):
    return replace(group, problem=replace(group.problem, source=source))


def groups_of(*sources: str, right: bool = True, samples: int = 0):
    verdicts = [right, *([True, False] * samples)[:samples]]
    return [of_category(make_group(verdicts, f"p{i}"), source) for i, source in enumerate(sources)]


def test_categories_in_the_order_of_the_data_set_then_by_name():
    order = FORMATS["mathvista"].order
    assert order == ("FQA", "GPS", "MWP", "TQA", "VQA")
    found = benchmark_summary(groups_of("z", "VQA", "FQA", "b", "FQA"), order=order)
    assert list(found.metrics) == ["FQA", "VQA", "b", "z", ALL]
    assert [one["greedy"].items for one in found.metrics.values()] == [2, 1, 1, 1, 5]
    # A set whose only category is its own name has none; one of the data set's is told.
    assert list(benchmark_summary(groups_of("ai2d", "ai2d")).metrics) == [ALL]
    assert list(benchmark_summary(groups_of("GPS"), order=order).metrics) == ["GPS", ALL]


def test_a_category_called_all_is_not_taken_for_all():
    found = benchmark_summary([*groups_of(ALL, right=False), of_category(make_group([True], "q"), "x")])
    assert list(found.metrics) == ["ALL (category)", "x", ALL]
    assert found.metrics["ALL (category)"]["greedy"].value == 0 and found.metrics[ALL]["greedy"].value == 0.5


@pytest.mark.parametrize(
    ("n", "names"),
    [
        (0, ["greedy"]),
        (1, ["greedy", "pass_at_1"]),
        (
            5,
            [
                "greedy",
                "pass_at_1",
                "majority",
                *("pass_at_2", "unbiased_pass_at_2", "pass_at_4", "unbiased_pass_at_4"),
            ],
        ),
    ],
)
def test_metrics_by_the_number_of_samples(n, names):
    found = benchmark_summary(groups_of("a", "b", samples=n)).metrics
    assert [list(one) for one in found.values()] == [names] * 3
    assert powers_of_two(16) == [2, 4, 8, 16] and powers_of_two(1) == powers_of_two(0) == []


def test_published_rules_only_where_they_judge_every_problem():
    group = make_group([False])
    text = replace(group.responses[0], text="so it is (B)", finish_reason="length")
    choice = AnswerType(kind="choice", choices=("x", "y"))
    typed = replace(group, problem=replace(group.problem, gold="B", answer_type=choice), responses=(text,))
    assert published_verdicts([typed], "m3cot") == {"p": True}  # an unfinished response is judged by what there is
    found = benchmark_summary([typed], published="m3cot").metrics[ALL]
    assert (found["greedy"].value, found["greedy_published"].value) == (0, 1)
    bare = replace(typed, problem=replace(typed.problem, id="q", answer_type=AnswerType(kind="choice")))
    assert published_verdicts([bare], "m3cot") is None
    assert published_verdicts([typed, bare], "m3cot") == {"p": True, "q": False}  # as it was judged
    some = benchmark_summary([typed, bare], published="m3cot")
    assert (some.unpublished, some.metrics[ALL]["greedy_published"].value) == (1, 0.5)
    text = markdown(EvaluationSummary(policy="base", benchmarks={"x": some}), {})
    assert "m3cot, which cannot judge 1 of the problems" in text
    assert published_verdicts([group], "mathvista") is None  # by exact match: no type
    latex = Problem(id="l", question="?", gold="x", answer_type=AnswerType(kind="latex"))
    assert published_type(latex, "mathvista") is None


def test_variants_of_the_data_sets():
    said = {name: form.published for name, form in FORMATS.items() if form.published}
    kit = dict.fromkeys(("mmstar", "mmbench", "ai2d"), "vlmevalkit")
    assert said == {"mathvista": "mathvista", "m3cot": "m3cot", **kit}
    for variant in said.values():
        replace(AnswerType(kind="choice", choices=("x", "y")), variant=variant)


def test_the_mean_of_estimates():
    """By hand for two; never outside of [0, 1]; as wide as one alone for many copies over the root of their number."""
    one, other = Estimate(value=0.5, items=10, low=0.2, high=0.9), Estimate(value=0.1, items=30, low=0.06, high=0.4)
    found = mean_of([one, other])
    assert (found.value, found.items) == (pytest.approx(0.3), 40)
    assert found.low == pytest.approx(0.3 - (0.3**2 + 0.04**2) ** 0.5 / 2)
    assert found.high == pytest.approx(0.3 + (0.4**2 + 0.3**2) ** 0.5 / 2)
    extreme = mean_of([wilson(0, 5), wilson(5, 5)])
    assert 0 < extreme.low < extreme.value == 0.5 < extreme.high < 1
    copies = mean_of([wilson(3, 10)] * 4)
    assert copies.high - copies.value == pytest.approx((wilson(3, 10).high - 0.3) / 2)
    with pytest.raises(ValueError, match="no estimates"):
        mean_of([])


def test_only_what_every_benchmark_has_is_averaged():
    with_samples, greedy = benchmark_summary(groups_of("a", samples=2)), benchmark_summary(groups_of("a", right=False))
    assert mean_accuracies({"x": greedy}) == {}
    assert mean_accuracies({"x": with_samples, "y": greedy}) == {"greedy": mean_of([wilson(1, 1), wilson(0, 1)])}


def test_hostile_names_stay_in_their_cells(tmp_path):
    found = {"x": benchmark_summary(groups_of(HOSTILE, "|", "\n", right=False), published="m3cot")}
    evaluation = EvaluationSummary(policy="base", benchmarks=found)
    text = markdown(evaluation, {"model": HOSTILE})
    lines = text.splitlines()
    table = [line for line in lines if line.startswith("| ")]
    assert len(table) == 2 + 4 and "\x1b" not in text and "\u2028" not in text
    for line in table:
        assert line.replace("\\\\", "").replace("\\|", "").count("|") == 4, line
    assert sum(line.startswith("#") for line in lines) == 2 and "(nothing)" in table[2]
    assert "\\<img src=x\\>" in text and "No column by the published rules (m3cot)" in text
    assert cell("attribute_reasoning") == "attribute_reasoning" and cell("a\\|b") == "a\\\\\\|b"
    write_tables(tmp_path, evaluation, {})
    categories = pq.read_table(tmp_path / "evaluation.parquet")["category"].to_pylist()
    assert categories == ["\n", HOSTILE, "|", ALL] and not list(tmp_path.glob(".*"))


def test_titles():
    assert [metric_title(name) for name in ("pass_at_8", "unbiased_pass_at_16", "reward_pass_at_2", "pass_at_1")] == [
        *("Pass@8", "Pass@16, unbiased", "Reward-Pass@2"), "mean of the samples"
    ]  # fmt: skip
    assert metric_title("novelty") == "novelty" and metric_title("pass_at_") == "pass_at_"


def test_a_stage_is_done_again_for_another_policy(tmp_path):
    stages = ["pretrain", "warmup", "evolve", "evaluate", "report"]
    journal = Journal(tmp_path / "journal.jsonl")

    def do(*names: str) -> None:
        for name in names:
            with journal.stage(name):
                pass

    assert stages_left(["evaluate"], journal) == ["evaluate"]
    do("pretrain", "warmup", "evaluate", "report")
    assert stages_left(["pretrain", "warmup", "evaluate", "report"], journal) == ["report"]
    assert stages_left(stages, journal) == ["evolve", "evaluate", "report"]
    do("evolve")
    assert stages_left(stages, journal) == stages_left(["evaluate", "report"], journal) == ["evaluate", "report"]
    do("evaluate")
    assert stages_left(stages, journal) == ["report"] and stages_left(["evolve", "evaluate"], journal) == []


def test_a_half_evolved_policy_is_not_evaluated(tmp_path):
    config = load_config("smoke", ["stages=[evaluate]", f"model.model_name_or_path={tmp_path}"])
    journal = Journal(tmp_path / "journal.jsonl")
    with journal.stage("warmup"):
        pass
    check_evaluation(config, tmp_path)
    with pytest.raises(KeyboardInterrupt), journal.stage("evolve"):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match=r"final is missing, evolve has begun; allowed: evolve before evaluate"):
        check_evaluation(config, tmp_path)
    check_evaluation(load_config("smoke", ["stages=[pretrain,evolve,evaluate]"]), tmp_path)
    (tmp_path / "checkpoints" / "final").mkdir(parents=True)
    check_evaluation(config, tmp_path)


def test_what_was_measured_of_which_policy(tmp_path):
    journal, found = Journal(tmp_path / "journal.jsonl"), benchmark_summary(groups_of("a", "b"))
    common = {"n": 0, "temperature": 1.0, "found": found}
    for policy, iteration, name in (("warmup", 0, "test"), ("final", 3, "test"), ("final", 3, "x"), ("final", 3, "y")):
        journal.append(EVENT, name=name, policy=policy, iteration=iteration, **common)
    evaluation = evaluation_of(journal, "final", 3)
    assert list(evaluation.benchmarks) == ["test", "x", "y"] and evaluation.averaged == ("x", "y")
    assert evaluation.benchmarks["x"] == found
    assert final_of(evaluation) == {"greedy": found.metrics[ALL]["greedy"], "ood_greedy": None}
    assert final_of(evaluation_of(journal, "warmup", 0)) is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluate.n=-1", "evaluate.n=-1; allowed: a whole number, 0 or more"),
        ("evaluate.n=256", "evaluate.n=256; allowed: below rollout.max_rows=256"),
        ("evaluate.limit=x", 'evaluate.limit="x"; allowed: a whole number, 0 or more'),
        ("evaluate.benchmarks=x", 'evaluate.benchmarks="x"; allowed: a mapping of names to names'),
        ("evaluate.benchmarks={x: 3}", 'evaluate.benchmarks={"x": 3}; allowed: a mapping of names to names'),
        ("evaluate.benchmarks={x: ''}", 'evaluate.benchmarks={"x": ""}; allowed: a mapping of names to names'),
        (
            "evaluate.benchmarks={Test: a}",
            "allowed: names other than train, unlabelled, warmup, validation, test, ood, mean",
        ),
        ("evaluate.benchmarks={a: x, A: y}", "allowed: names that differ in more than upper and lower case"),
        *[
            (f"evaluate.benchmarks={{'{name}': a}}", "allowed: names of 1 to 64 letters, digits, '.', '_' and '-'")
            for name in ("", ".", "../x", "a/b", "a b", "ä", "a" * 65, "-a", "a\\n")
        ],
        ("evaluate.benchmark={x: a}", "evaluate.benchmark: unknown key; did you mean evaluate.benchmarks?"),
    ],
)
def test_refusals(override, message):
    with pytest.raises(ConfigError) as caught:
        load_config(None, ["rollout.max_rows=256", override])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_tables_say_how_was_asked_and_judged():
    plain = load_config(None, [])
    assert (prompts_in_words(plain), answers_in_words(plain)) == ("the question", "strict rules")
    other = load_config(
        None, ["prompts.system=Be\nbrief.", "prompts.template=Q: {question}", "answers.variant=mathvista",
               "answers.extract=[boxed]"]
    )  # fmt: skip
    assert prompts_in_words(other) == "Q: {question}, behind the system message Be brief."
    assert answers_in_words(other) == "mathvista rules, which are lenient, where they can judge, found by boxed"


def test_what_earlier_runs_did_without():
    assert LATER["evaluate.n"] == LATER["evaluate.limit"] == 0
    base = config_hash(load_config())
    assert base == config_hash(load_config(None, ["evaluate.benchmarks={}", "evaluate.n=0"]))
    for changed in ("evaluate.n=1", "evaluate.benchmarks={x: a}", "evaluate.limit=5"):
        assert config_hash(load_config(None, [changed])) != base


def test_the_closing_lines_leave_the_curve_of_pass_at_k_to_the_tables(tmp_path):
    found = {"x": benchmark_summary(groups_of("a", samples=8))}
    line = all_lines(EvaluationSummary(policy="base", benchmarks=found), tmp_path)[0]
    assert line.startswith("x (1 problems): greedy 100.0 (") and "mean of the samples" in line and "majority" in line
    assert "Pass@8" in line and "Pass@2" not in line and "unbiased" not in line
