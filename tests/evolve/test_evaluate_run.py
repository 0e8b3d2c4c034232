"""The evaluate stage through the command line: alone on a checkpoint, stopped and resumed, after a warm-up."""

import json
import math
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from benchmark_files import m3cot_row, save_taught, write_benchmarks

from mstar_engine.answer_type import read_answer_type
from mstar_engine.evolve.evaluate import Evaluation
from mstar_engine.reward.answers import answer_form
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout_file import RolloutWriter
from mstar_engine.run import main
from mstar_engine.summary import ALL, read_summary
from mstar_engine.train.prm import new_prm, save_prm

pytestmark = pytest.mark.slow
N = 4


@pytest.fixture(autouse=True, scope="module")
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A folder with benchmarks, a policy that answers some of them, and a process reward model."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("given")
    write_benchmarks(folder)
    save_taught(folder / "policy")
    prm = new_prm(
        folder / "policy", "mstar_scalar", "the policy", seed=0, dtype="float32", attn_implementation="sdpa",
        device=torch.device("cpu"), delimiter="\n\n", max_steps=0, reduction="min",
    )  # fmt: skip
    save_prm(folder / "prm", prm, "mstar_scalar")
    return folder


def evaluate(given: Path, run: Path, *more: str) -> int:
    names = f'mathvista: "mathvista:{given}/testmini.json", m3cot: "m3cot:{given}/m3cot.jsonl"'
    options = [
        f"output_dir={run}", "threads=1", f"model.model_name_or_path={given}/policy", "data.dataset_name=files",
        f"data.cache_dir={given}/cache", f"prm.model_name_or_path={given}/prm", f"evaluate.n={N}",
        f"evaluate.benchmarks={{{names}}}", "rollout.max_completion_length=8", "rollout.max_rows=5",
        "evaluate.pass_at_k_n=8", "stages=[evaluate,report]",
    ]  # fmt: skip
    return main(["smoke", *options, *more])


@pytest.fixture(scope="module")
def finished(given: Path, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("evaluated") / "run"
    assert evaluate(given, run) == 0
    return run


def table(run: Path) -> dict[tuple[str, str, str], dict]:
    rows = pq.read_table(run / "evaluation.parquet").to_pylist()
    assert list(rows[0]) == ["benchmark", "category", "metric", "value", "low", "high", "items"]
    found = {(row["benchmark"], row["category"], row["metric"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def responses(run: Path, name: str) -> dict[str, list[dict]]:
    """The kept responses by problem, the greedy one first."""
    found: dict[str, list[dict]] = {}
    for row in pq.read_table(run / "rollouts" / f"base_{name}_0000.parquet").to_pylist():
        found.setdefault(row["problem_id"], []).append(row)
    return {name: sorted(rows, key=lambda row: row["sample"]) for name, rows in found.items()}


def voted(rows: list[dict], weigh) -> bool:
    """Whether the answer of the largest weight is right; ties by summed score, then to the earliest."""
    kind = read_answer_type(rows[0]["answer_type"])
    ballots: dict[str, list[dict]] = {}
    for row in rows:
        form = answer_form(row["answer"] or "", kind)
        if row["finish_reason"] == "stop" and form:
            ballots.setdefault(form, []).append(row)
    best = max(ballots.values(), key=lambda some: (weigh(some), sum(row["score"] for row in some)), default=None)
    return best is not None and answer_form(best[0]["answer"], kind) == answer_form(rows[0]["gold"], kind)


def by_hand(rows: list[dict]) -> dict[str, float]:
    """The outcomes of one problem by metric, published rules aside."""
    right = [bool(row["correct"]) for row in rows]
    samples, found = right[1:], {"greedy": right[0], "pass_at_1": sum(right[1:]) / N}
    for k in (2, 4):
        found[f"pass_at_{k}"] = any(samples[:k])
        found[f"unbiased_pass_at_{k}"] = 1 - math.comb(N - sum(samples), k) / math.comb(N, k)
    found["majority"] = voted(rows[1:], len)
    found["weighted"] = voted(rows[1:], lambda some: sum(row["score"] for row in some))
    found["best_of_n"] = voted(rows[1:], lambda some: max(row["score"] for row in some))
    ranked = sorted(rows[1:], key=lambda row: (-row["score"], len(row["token_ids"]), row["sample"]))
    return found | {"reward_pass_at_2": any(row["correct"] for row in ranked[:2])}


def test_the_tables_are_what_the_responses_say(finished: Path) -> None:
    """Every value against a plain recomputation from the Parquet of the responses, category by category."""
    found, categories = table(finished), {"mathvista": ["FQA", "GPS", "MWP", "TQA", "VQA"]}
    categories["m3cot"] = ["science", "mathematics"]
    for name, expected in categories.items():
        groups = responses(finished, name)
        hands = {problem: by_hand(rows) for problem, rows in groups.items()}
        seen = list(dict.fromkeys(category for benchmark, category, _ in found if benchmark == name))
        assert seen == [*expected, ALL]
        for category in seen:
            some = [p for p, rows in groups.items() if category in (ALL, rows[0]["source"])]
            for metric in next(iter(hands.values())):
                row = found[name, category, metric]
                assert row["value"] == pytest.approx(sum(hands[p][metric] for p in some) / len(some)), (name, metric)
                assert row["items"] == len(some) and 0 <= row["low"] <= row["value"] <= row["high"] <= 1
    assert len({found["mathvista", ALL, metric]["value"] for metric in ("greedy", "pass_at_1", "pass_at_4")}) > 1
    assert 0 < found["mathvista", ALL, "greedy"]["value"] < 1
    for metric in {metric for _, _, metric in found}:
        both = [found[name, ALL, metric]["value"] for name in categories]
        assert found["mean", ALL, metric]["value"] == pytest.approx(sum(both) / 2)


def test_an_interval_is_wilson_s(finished: Path) -> None:
    row = table(finished)["mathvista", ALL, "greedy"]
    p, n, z = row["value"], 10, 1.959964
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (row["low"], row["high"]) == (pytest.approx(middle - half, 1e-5), pytest.approx(middle + half, 1e-5))


def test_published_rules_judge_the_same_responses(finished: Path) -> None:
    """MathVista's drop the decimals of an integer; those of M3CoT find a choice's text within another number."""
    found = table(finished)

    def lenient(row: dict) -> bool:
        kind = json.loads(row["answer_type"])["kind"]
        return row["correct"] or (kind == "integer" and int(float(row["answer"])) == int(row["gold"]))

    greedy = [rows[0] for rows in responses(finished, "mathvista").values()]
    assert found["mathvista", ALL, "greedy_published"]["value"] == pytest.approx(sum(map(lenient, greedy)) / 10)
    greedy = [rows[0] for rows in responses(finished, "m3cot").values()]
    assert found["m3cot", ALL, "greedy_published"]["value"] == sum("1" in row["text"] for row in greedy) / 5
    for name in ("mathvista", "m3cot"):
        assert found[name, ALL, "greedy_published"]["value"] > found[name, ALL, "greedy"]["value"], name


def test_what_else_a_run_says(finished: Path) -> None:
    """The summary, the Markdown and the page say the same; a policy that was not evolved has no final accuracy."""
    summary, found = read_summary(finished / "summary.json"), table(finished)
    assert (summary.final, summary.warmup, summary.evaluation.policy) == (None, None, "base")
    assert summary.evaluation.averaged == ("mathvista", "m3cot")
    tables = {name: one.metrics for name, one in summary.evaluation.benchmarks.items()}
    for (name, category, metric), row in found.items():
        place = summary.evaluation.mean if name == "mean" else tables[name][category]
        assert (place[metric].value, place[metric].low, place[metric].high) == (row["value"], row["low"], row["high"])
    text = (finished / "evaluation.md").read_text()
    whole = found["mathvista", ALL, "greedy"]
    said = f"{100 * whole['value']:.1f} ({100 * whole['low']:.1f} to {100 * whole['high']:.1f})"
    (line,) = [one for one in text.splitlines() if one.startswith("| ALL | 10 |")]
    assert line.split(" | ")[2] == said and "temperature 1" in text and "seed 0" in text and "torch " in text
    assert "- answers: strict rules\n" in text and "- prompts: the question\n" in text
    header = next(one for one in text.splitlines() if one.startswith("| category"))
    assert header.count("|") == line.count("|") and "greedy, published rules" in header and "Reward-Pass@2" in header
    page = (finished / "report.html").read_text()
    assert "is evaluated as it is" in page and "Mean of 2 benchmarks" in page and ">GPS</th>" in page
    assert "Accuracy by iteration" not in page


def test_stopped_anywhere_it_goes_on(given, finished, tmp_path, monkeypatch, capsys) -> None:
    """Cut among the groups of the second benchmark, and again before its numbers are told: nothing that finished is
    sampled again, and the tables are those of a run that nothing disturbed."""
    write, asked = RolloutWriter.write, []
    generate = RolloutEngine.generate_batches

    def cut(self, *groups):
        if len(self.finished) == 2 and "m3cot" in self.path.name:
            raise KeyboardInterrupt
        write(self, *groups)

    def logged(self, problems, *rest, **options):
        asked.append([problem.id for problem in problems])
        return generate(self, problems, *rest, **options)

    monkeypatch.setattr(RolloutEngine, "generate_batches", logged)
    with monkeypatch.context() as patch:
        patch.setattr(RolloutWriter, "write", cut)
        assert evaluate(given, tmp_path / "run") == 130
    assert len(table(tmp_path / "run")) == len([key for key in table(finished) if key[0] == "mathvista"])
    with monkeypatch.context() as patch:
        patch.setattr(RolloutWriter, "finish", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        assert evaluate(given, tmp_path / "run", "--resume") == 130
    assert evaluate(given, tmp_path / "run", "--resume") == 0
    assert [len(one) for one in asked] == [10, 5, 3]
    assert not Counter(asked[2]).keys() - set(asked[1])
    assert "mathvista (10 problems): greedy " in capsys.readouterr().out
    ours, theirs = table(tmp_path / "run"), table(finished)
    assert ours.keys() == theirs.keys()
    for key, row in ours.items():
        assert row["value"] == theirs[key]["value"] and row["items"] == theirs[key]["items"], key
    assert evaluate(given, tmp_path / "run", "--resume") == 0 and len(asked) == 3
    assert "this run was complete" in capsys.readouterr().out
    assert evaluate(given, tmp_path / "other", "--dry_run") == 0 and not (tmp_path / "other").exists()
    assert "10 mathvista + 5 m3cot) x 5" in capsys.readouterr().out


def test_a_warmed_up_policy_and_what_it_becomes(given: Path, tmp_path: Path, monkeypatch) -> None:
    """Evaluated behind the warm-up; when the run evolves it in a later sitting, the evolved one is evaluated too."""
    run = [
        "smoke", f"output_dir={tmp_path}/run", "threads=1", "evolve.method=sft", "rollout.max_completion_length=8",
        "evaluate.limit=3", f"evaluate.benchmarks={{m: 'm3cot:{given}/m3cot.jsonl'}}", "data.test_problems=4",
        "data.ood_problems=2", f"data.cache_dir={given}/cache", "data.train_problems=4", "data.validation_problems=2",
        "pretrain.ground_steps=1", "pretrain.align_steps=1", "pretrain.check_steps=1", "evolve.iterations=1",
    ]  # fmt: skip
    assert main([*run, "stages=[pretrain,warmup,evaluate]"]) == 0
    before = read_summary(tmp_path / "run" / "summary.json")
    assert (before.evaluation.policy, before.final) == ("warmup", None)
    assert before.evaluation.benchmarks["test"].metrics[ALL]["greedy"] == before.warmup.greedy
    assert before.evaluation.benchmarks["m"].problems == 3 and before.evaluation.mean == {}
    assert main([*run, "--resume", "stages=[pretrain,warmup,evolve,evaluate,report]"]) == 0
    after = read_summary(tmp_path / "run" / "summary.json")
    assert (after.evaluation.policy, after.evaluation.iteration) == ("final", 1)
    assert after.final.greedy == after.evaluation.benchmarks["test"].metrics[ALL]["greedy"]
    assert after.final.ood_greedy.items == 2 and list(after.evaluation.benchmarks) == ["test", "ood", "m"]
    monkeypatch.setattr(Evaluation, "_measure", lambda *_: pytest.fail("measured again"))
    assert main([*run, "--resume", "stages=[evaluate,report]"]) == 0


def refused(capsys, *arguments: str) -> str:
    status = main(list(arguments))
    message = capsys.readouterr().err
    assert status in (1, 2) and message.count("\n") == 1, message
    return message


def test_refused_before_work(given: Path, tmp_path: Path, capsys) -> None:
    """One line that names the key, and no directory is taken."""
    run, files = tmp_path / "run", "data.dataset_name=files"
    base = ["smoke", f"output_dir={run}", f"model.model_name_or_path={given}/policy", "stages=[evaluate]"]
    base += [f"data.cache_dir={tmp_path}/cache"]
    (tmp_path / "empty.jsonl").touch()
    rows = [m3cot_row(tmp_path, i) | {"domain": "arts"} for i in range(2)] + [m3cot_row(tmp_path, 2)]
    (tmp_path / "arts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for text, said in (
        ("/no/such.jsonl", "evaluate.benchmarks.x: /no/such.jsonl: no such file"),
        (f"{tmp_path}/empty.jsonl", f"evaluate.benchmarks.x={tmp_path}/empty.jsonl: no problems among 0 rows"),
        (f"m3cot:{tmp_path}/arts.jsonl", "evaluate.benchmarks.x: 2 of 3 rows set aside (unknown category 2)"),
    ):
        assert said in refused(capsys, *base, files, f"evaluate.benchmarks={{x: '{text}'}}")
    assert "evaluate.benchmarks={}: nothing to evaluate" in refused(capsys, *base, files)
    (tmp_path / "train.jsonl").write_text(json.dumps(m3cot_row(tmp_path, 2) | {"category": "x"}) + "\n")
    learned = [f"data.train={tmp_path}/train.jsonl", f"data.test={given}/m3cot.jsonl", "data.validation_problems=1"]
    learned += [f"data.validation={given}/m3cot.jsonl", "data.fields={category: domain}"]
    assert "data.train=''" in refused(capsys, *base, files, "stages=[evolve]")
    benchmark = f"evaluate.benchmarks={{x: 'rows:{given}/m3cot.jsonl'}}"
    message = refused(capsys, *base, files, *learned[:1], "data.fields={category: domain}", benchmark,
                      f"data.test={tmp_path}/arts.jsonl", f"data.validation={tmp_path}/arts.jsonl")  # fmt: skip
    assert "also in the training set" in message
    tiny = ["smoke", f"output_dir={run}", "stages=[evaluate]"]
    assert "model.model_name_or_path=tiny: it is not pretrained yet" in refused(capsys, *tiny)
    assert not run.exists() or not (run / "config.yaml").exists()
