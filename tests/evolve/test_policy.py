"""The policy's engine is told what the configuration says."""

import pytest

from mstar_engine.config_parse import load_config
from mstar_engine.evolve.policy import Policy
from mstar_engine.models.tiny import build_tiny
from mstar_engine.rollout.engine import RolloutEngine
from mstar_engine.train.schedule import Schedule


def test_rollout_keys_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict = {}
    init = RolloutEngine.__init__

    def note(self: RolloutEngine, *tensors: object, **options: object) -> None:
        given.clear()
        given.update(options)
        init(self, *tensors, **options)

    monkeypatch.setattr(RolloutEngine, "__init__", note)
    model, processor = build_tiny(0)
    schedule = Schedule(peak=1e-3)
    policy = Policy(model, processor, load_config("smoke", ["rollout.decode=eager"]), schedule)
    assert (given["decode"], given["torch_compile"]) == ("eager", False)
    assert given["kv_cache_memory"] is None and given["image_cache_memory"] is None
    assert policy.engine.features.capacity == 0  # on the CPU

    asked = ["rollout.decode=fixed", "rollout.torch_compile=true", "rollout.image_cache_memory=4096"]
    asked += ["rollout.kv_cache_memory=2097152", "rollout.max_rows=24", "rollout.block_size=8"]
    policy = Policy(model, processor, load_config("smoke", asked), schedule)
    assert given == {
        "max_rows": 24,
        "block_size": 8,
        "kv_cache_memory": 2**21,
        "decode": "fixed",
        "torch_compile": True,
        "image_cache_memory": 4096,
        "merge_lora": False,
    }
    assert policy.engine.features.capacity == 4096


def test_what_the_engine_cannot_do_is_refused() -> None:
    model, processor = build_tiny(0)
    with pytest.raises(ValueError, match=r"torch_compile=True with decode='auto' on cpu; allowed: False, or"):
        RolloutEngine(model, processor, torch_compile=True)
    with pytest.raises(ValueError, match=r"image_cache_memory=-1; allowed: bytes, 0 or more, or None"):
        RolloutEngine(model, processor, image_cache_memory=-1)
    with pytest.raises(ValueError, match=r"decode='graphs'; allowed: auto, eager, fixed"):
        RolloutEngine(model, processor, decode="graphs")
