"""Run directories to report on: two iterations, hostile text wherever data can put it, with or without step scores."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mstar_engine.config_parse import load_config
from mstar_engine.evolve.dynamics import wilson
from mstar_engine.reward.answers import judge
from mstar_engine.reward.select import select
from mstar_engine.run_directory import RunDirectory
from mstar_engine.summary import (
    ALL,
    AnnotationSummary,
    BenchmarkSummary,
    EvaluationSummary,
    FinalSummary,
    HeldOutSummary,
    IterationSummary,
    ModelCurve,
    PrmSummary,
    PseudoSummary,
    Summary,
    SweepSummary,
    VerifierSummary,
    WarmupSummary,
    read_summary,
)
from mstar_engine.types import Estimate, Group, Problem, Response

HOSTILE = (
    """<script>document.title="owned"</script><img src="https://example.com/x.png" onerror="alert(1)">'"&{{ 7 * 7 }}"""
)


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


def scored_group(name: str, rows: list[tuple[str, bool, tuple[float, ...] | None]], source: str = "counting") -> Group:
    """A group whose rows are (text, selected, step scores)."""
    group = make_group(name, ["12"] * len(rows), source=source)
    responses = tuple(
        replace(response, text=text, step_scores=scores, score=min(scores) if scores else None)
        for response, (text, _, scores) in zip(group.responses, rows, strict=True)
    )
    judged = judge(replace(group, responses=responses))
    chosen = [replace(response, selected=row[1]) for response, row in zip(judged.responses, rows, strict=True)]
    return replace(judged, responses=tuple(chosen))


RIGHT = "gold 5 and 7\n\n5 + 7 = 12\n\n# Answer 12"
LUCKY = "gold 4 and 7\n\n4 + 7 = 12\n\n# Answer 12"
WRONG = "gold 5 and 8\n\n5 + 8 = 13\n\n# Answer 13"
SCORED = scored_group(
    "scored",
    [
        (RIGHT, True, (0.97, 0.93, 0.91)),
        ("gold 5 & 7\n\n# Answer 12", False, (0.85, 0.81)),
        (LUCKY, False, (0.31, 0.04, 0.45)),
        (WRONG, False, (0.22, 0.61, 0.12)),
        (WRONG, False, (0.22, 0.61, 0.12)),
        (f"{HOSTILE}\n\n{HOSTILE} more\n\n# Answer 14", False, (0.5, 0.07, 0.07)),
        (f"{HOSTILE}\n\nunfinished", False, (0.5, 0.5, 0.5)),
    ],
)


def votes(best: int, weighted: int, majority: int) -> VerifierSummary:
    return VerifierSummary(best_of_n=wilson(best, 200), weighted=wilson(weighted, 200), majority=wilson(majority, 200))


PRM = PrmSummary(
    model=f"checkpoints/prm {HOSTILE}",
    head="two_class",
    targets="soft",
    labels=12345,
    problems=678,
    responses=4321,
    balance=0.625,
    held_out=HeldOutSummary(
        steps=987,
        balance=0.6,
        auc=0.914,
        f1=0.632,
        accuracy_on_erroneous=0.551,
        accuracy_on_correct=0.741,
        macro_f1=0.823,
        threshold=0.47,
    ),
    annotation=AnnotationSummary(
        mode="soft", completions=16, drawn=98760, prefill_tokens=1234567, decode_tokens=2345678, seconds=95.0
    ),
)


def write_groups(path: Path, *groups: Group) -> None:
    """A run that has sampled these groups and measured nothing."""
    with (
        RunDirectory.create_or_resume(load_config(None, [f"output_dir={path}"])) as directory,
        directory.rollout_writer(1) as writer,
    ):
        writer.write(*groups)
        writer.finish()


def write_run(path: Path, prm: bool = False) -> Path:
    """A finished run of two iterations; with `prm`, with all that a process reward model adds."""
    config = load_config(None, [f"output_dir={path}", "model.model_name_or_path=<i>x"])
    with RunDirectory.create_or_resume(config) as directory:
        directory.journal.append("start")
        for iteration in (1, 2):
            with directory.rollout_writer(iteration) as writer:
                writer.write(make_group("all-right", ["12", "12"]))
                writer.write(make_group("mixed", ["12", "13", "13", HOSTILE], question=HOSTILE, source=HOSTILE))
                writer.write(make_group(f"{HOSTILE}/../id", ["13"]))
                if prm:
                    writer.write(SCORED)
                writer.finish()
        directory.write_report_image("mixed", Image.new("L", (8, 8), 128))
        (path / "report_images" / "all-right.png").write_bytes(b"<svg onload=alert(1)>")
        row = {"kept": 2, "sampled": 7, "temperature": 1.0, "seconds": 1.0}
        rows = [
            IterationSummary(
                iteration=i,
                greedy=wilson(60 + i, 100),
                pass_at_k=wilson(80, 100),
                reward_pass_at_2=wilson(70 + i, 100) if prm else None,
                verifier={1: votes(101, 101, 101), 2: votes(110, 110, 100), 8: votes(121, 133, 127)} if prm else None,
                **row,
            )
            for i in (1, 2)
        ]
        directory.write_summary(
            Summary(
                warmup=WarmupSummary(
                    greedy=wilson(40, 100),
                    ood_greedy=wilson(20, 100),
                    validation_greedy=wilson(41, 100),
                    reward_pass_at_2=wilson(50, 100) if prm else None,
                    verifier={1: votes(77, 77, 77), 8: votes(81, 83, 87)} if prm else None,
                ),
                prm=PRM if prm else None,
                evolve=tuple(rows),
                final=FinalSummary(greedy=wilson(67, 100), ood_greedy=wilson(25, 100)),
                seconds={"evolve": 2.0, "annotate": 95.0, HOSTILE: 70.0} if prm else {"evolve": 2.0, HOSTILE: 70.0},
            )
        )
    return path


DYNAMICS = [
    *("greedy", "pass_at_1", "pass_at_k", "unbiased_pass_at_k", "pass_at_k_minus_greedy", "reward_pass_at_k"),
    *("majority", "weighted", "best_of_n", "entropy", "length", "steps"),
    *("solved_none", "solved_some", "solved_all", "distinct"),
]

REASONS = (
    {"match": 5, "mismatch": 1200, "no answer": 30, "not a number": 4, HOSTILE: 3},
    {"mismatch": 900, "match": 6, "unfinished (length)": 7, "timeout": 2, "empty answer": 1, "not a list": 1},
)


def dynamics(shift: int) -> dict[str, Estimate]:
    """Every metric by name, one below 0, and one of a later version."""
    found = {name: wilson(30 + shift + index, 100) for index, name in enumerate(DYNAMICS)}
    found["pass_at_k_minus_greedy"] = Estimate(value=-0.05, items=100, low=-0.1, high=0.02)
    found["length"] = Estimate(value=21.5 + shift, items=100, low=20.0, high=24.0)
    return found | {f"novelty {HOSTILE}": Estimate(value=3.25, items=100, low=3.0, high=3.5)}


def sweep(chosen: float, controller: str = "racing", model: bool = False) -> SweepSummary:
    """A sweep of three temperatures, one of them dropped early; it was 1.0 before."""
    curve = ModelCurve(temperatures=(0.5, 1.0, 1.5), mean=(0.5, 0.6, 0.4), low=(0.4, 0.5, 0.3), high=(0.6, 0.7, 0.5))
    return SweepSummary(
        controller=controller,
        metric="reward_pass_at_k",
        k=2,
        present=1.0,
        chosen=chosen,
        temperatures=(0.5, 1.0, 1.5),
        values=(wilson(60, 100), wilson(66, 100), wilson(4, 12)),
        drawn=1234,
        prefill_tokens=5,
        seconds=7.5,
        model=curve if model else None,
    )


def evaluated() -> EvaluationSummary:
    """Two benchmarks with every metric of 16 samples, and their mean; a category of hostile text."""
    names = ["greedy", "greedy_published", "pass_at_1"]
    names += ["majority", "weighted", "best_of_n", "reward_pass_at_2"]
    names += [f"{kind}pass_at_{k}" for k in (2, 4, 8, 16) for kind in ("", "unbiased_")]
    rows = {category: {name: wilson(31 + i, 100) for i, name in enumerate(names)} for category in ("FQA", HOSTILE)}
    whole = {name: wilson(63 + i, 200) for i, name in enumerate(names)}
    some = {name: whole[name] for name in names if name != "greedy_published"}
    return EvaluationSummary(
        policy="final",
        iteration=2,
        n=16,
        benchmarks={
            "mathvista": BenchmarkSummary(problems=200, published="mathvista", metrics={**rows, ALL: whole}),
            "a-benchmark-of-a-rather-long-name": BenchmarkSummary(problems=200, metrics={ALL: some}),
        },
        averaged=("mathvista", "a-benchmark-of-a-rather-long-name"),
        mean=some,
    )


def write_rich_run(path: Path) -> Path:
    """A run with all that the report can show: metrics, sweeps, pseudo-labels, benchmarks, a process reward model."""
    write_run(path, prm=True)
    summary = read_summary(path / "summary.json")
    first, second = summary.evolve
    rows = (
        replace(first, correct=5, reasons=REASONS[0], temperature=0.5, dynamics=dynamics(4), sweep=sweep(0.5)),
        replace(
            second,
            correct=6,
            reasons=REASONS[1],
            temperature=1.0,
            dynamics=dynamics(9),
            sweep=sweep(1.0, HOSTILE, model=True),
            pseudo=PseudoSummary(problems=40, voted=30, passed=20, accuracy=wilson(18, 20)),
        ),
    )
    changed = replace(
        summary, evolve=rows, warmup=replace(summary.warmup, dynamics=dynamics(0)), evaluation=evaluated()
    )
    with RunDirectory.create_or_resume(load_config(path / "config.yaml"), resume=True) as directory:
        directory.write_summary(changed)
    return path
