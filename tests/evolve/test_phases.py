"""Phases that share a device: what one holds, the next can have. And a whole run in bfloat16."""

import json
import weakref
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, PreTrainedModel

from mstar_engine.evolve import pipeline, process_reward
from mstar_engine.evolve.loop import Evolution
from mstar_engine.evolve.pipeline import Pipeline
from mstar_engine.evolve.policy import Policy
from mstar_engine.reward import annotate, answers
from mstar_engine.reward.answers import Verdict
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.rollout.kv_cache import KVCache
from mstar_engine.run import main
from mstar_engine.train.trainer import Trainer


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def half_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge by whom an untrained policy succeeds, so that the evolution has something to learn from."""
    for module in (answers, annotate):
        monkeypatch.setattr(
            module,
            "judge_response",
            lambda response, gold: Verdict(zlib.crc32(response.text.encode()) % 2 == 0, "", ""),
        )


def run(directory: Path, *arguments: str) -> int:
    return main(["smoke", f"output_dir={directory}", "threads=1", "model.device=cpu", *arguments])


def test_no_cache_while_training_and_no_gradient_while_sampling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from inside: each optimizer step of warm-up, process reward model and evolution, and each rollout."""
    engines: list[weakref.ref] = []
    caches: list[weakref.ref] = []
    policies: list[weakref.ref] = []
    counted = {"steps": 0, "evolving": 0, "sampled": 0, "policies while fitting": 0}
    init, cache_init, policy_init = RolloutEngine.__init__, KVCache.__init__, Policy.__init__
    step, take, fit = Trainer.step, RolloutEngine.take_cache, process_reward.fit_prm

    def note_engine(self, *arguments, **options):
        engines.append(weakref.ref(self))
        init(self, *arguments, **options)

    def note_cache(self, *arguments, **options):
        caches.append(weakref.ref(self))
        cache_init(self, *arguments, **options)

    def note_policy(self, *arguments, **options):
        policies.append(weakref.ref(self))
        policy_init(self, *arguments, **options)

    def stepping(self, *arguments, **options):
        assert all(engine() is None or engine()._cache is None for engine in engines)
        assert all(cache() is None for cache in caches)
        counted["steps"] += 1
        counted["evolving"] += bool(caches) and isinstance(self.model, PreTrainedModel)
        return step(self, *arguments, **options)

    def sampling(self, blocks):
        assert all(parameter.grad is None for parameter in self.model.parameters())
        counted["sampled"] += 1
        return take(self, blocks)

    def fitting(*arguments, **options):
        counted["policies while fitting"] += sum(policy() is not None for policy in policies)
        return fit(*arguments, **options)

    monkeypatch.setattr(RolloutEngine, "__init__", note_engine)
    monkeypatch.setattr(KVCache, "__init__", note_cache)
    monkeypatch.setattr(Policy, "__init__", note_policy)
    monkeypatch.setattr(Trainer, "step", stepping)
    monkeypatch.setattr(RolloutEngine, "take_cache", sampling)
    monkeypatch.setattr(process_reward, "fit_prm", fitting)
    assert run(tmp_path / "run") == 0
    assert counted["steps"] > 4 and counted["evolving"] >= 2 and counted["sampled"] > 6 and caches
    assert counted["policies while fitting"] == 0


def test_the_process_reward_model_is_loaded_where_no_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache takes most of what is free, so a second model has to come first."""
    held = []
    load = pipeline.scoring_model
    evolve = Pipeline.evolve

    def watched(self):
        monkeypatch.setattr(
            pipeline, "scoring_model", lambda *a: held.append(self._policy.engine._cache is not None) or load(*a)
        )
        evolve(self)

    monkeypatch.setattr(Pipeline, "evolve", watched)
    assert (
        run(tmp_path / "run", "stages=[pretrain, warmup, evolve]", "select.kind=all", "temperature.controller=fixed")
        == 0
    )
    assert held == [False]


@pytest.mark.slow
def test_a_whole_run_in_bfloat16(tmp_path: Path) -> None:
    """Every stage on bfloat16 parameters; stopped and resumed, it ends with the bits of an undisturbed run."""
    options = ["model.dtype=auto", "train.bf16=true", "train.max_tokens=300", "train.packing=true",
               "train.gradient_checkpointing=true"]  # fmt: skip
    assert run(tmp_path / "whole", *options) == 0
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert [entry["kept"] > 0 for entry in summary["evolve"]] == [True, True] and summary["prm"]["loss"] > 0
    final = tmp_path / "whole" / "checkpoints" / "final"
    model = AutoModelForImageTextToText.from_pretrained(final)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    masters = {name for name in load_file(final / "optimizer.safetensors") if name.endswith("/master")}
    assert masters == {f"{name}/master" for name, _ in model.named_parameters()}

    improve = Evolution._improve

    def interrupted(self, iteration, examples):
        if iteration == 1:
            raise KeyboardInterrupt
        return improve(self, iteration, examples)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evolution, "_improve", interrupted)
        assert run(tmp_path / "parts", *options) == 130
    assert run(tmp_path / "parts", "--resume", *options) == 0
    for name in ("model.safetensors", "optimizer.safetensors"):
        a, b = (load_file(tmp_path / which / "checkpoints" / "final" / name) for which in ("whole", "parts"))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a), name
