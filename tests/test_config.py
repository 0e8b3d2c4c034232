"""The configuration: round trips, recipes and overrides, and one-line refusals that name the key."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstar_engine.config import STAGES, EvaluateConfig, EvolveConfig, RolloutConfig, RunConfig, TrainConfig
from mstar_engine.config_parse import (
    LATER,
    build_config,
    config_hash,
    dump_config,
    flat_config,
    known_keys,
    load_config,
    recipe_names,
)
from mstar_engine.yaml_text import ConfigError, parse_yaml, write_yaml

SCALAR = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text()
CONFIGS = st.builds(
    RunConfig,
    output_dir=st.text(min_size=1),
    seed=st.integers(0, 2**63 - 1),
    stages=st.sets(st.sampled_from(STAGES), min_size=1).map(lambda some: [s for s in STAGES if s in some]),
    rollout=st.builds(
        RolloutConfig,
        temperature=st.floats(0, 1e300),
        top_p=st.floats(0, 1, exclude_min=True),
        kv_cache_memory=st.just("auto") | st.integers(2**20, 2**60),
        image_cache_memory=st.just("auto") | st.integers(0, 2**60),
        decode=st.sampled_from(["auto", "fixed"]),
        torch_compile=st.booleans(),
    ),
    train=st.builds(TrainConfig, learning_rate=st.floats(1e-300, 1), adam_beta2=st.floats(0, 1, exclude_max=True)),
    evolve=st.builds(EvolveConfig, interval=st.floats(0, 1, exclude_min=True) | st.integers(2, 10**9)),
)


def refusal(*overrides: str) -> str:
    """The one line with which the overrides are refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, list(overrides))
    message = str(caught.value)
    assert "\n" not in message and isinstance(caught.value, ValueError)
    return message


@given(CONFIGS)
@settings(deadline=None)
def test_round_trip(config):
    again = build_config(parse_yaml(dump_config(config), "here"))
    assert again == config
    assert dump_config(again) == dump_config(config)
    assert type(again.evolve.interval) is type(config.evolve.interval)


@given(st.recursive(SCALAR, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8))
@settings(deadline=None)
def test_yaml_round_trip(value):
    assert parse_yaml(write_yaml(value), "here") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("no", "no"),
        ("010", 10),
        ("1_0", "1_0"),
        ("12:30", "12:30"),
        ("2024-01-02", "2024-01-02"),
        ("~", None),
    ],
)
def test_yaml_scalars(text, value):
    assert parse_yaml(text, "here") == value


def test_default_recipe_is_the_defaults():
    assert load_config("default") == load_config() == RunConfig()


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load(name):
    assert isinstance(load_config(name), RunConfig)


def test_smoke_extends_default():
    config = load_config("smoke", ["rollout.n=3", "train.learning_rate=1e-6"])
    assert (config.data.train_problems, config.rollout.n, config.train.learning_rate) == (16, 3, 1e-6)
    assert config.rollout.temperature == 1.0


def test_recipe_file_extends_a_neighbour(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 3\nrollout: {n: 5, top_k: 7}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nrollout: {n: 6}\n")
    config = load_config(tmp_path / "mine.yaml")
    assert (config.seed, config.rollout.n, config.rollout.top_k) == (3, 6, 7)


def test_overrides_for_text_keep_the_text():
    assert load_config(None, ["output_dir=2024"]).output_dir == "2024"
    assert load_config(None, ["output_dir=runs/a=b"]).output_dir == "runs/a=b"
    assert load_config(None, ["rollout={n: 3}", "rollout.top_k=2"]).rollout == RolloutConfig(n=3, top_k=2)


@given(st.sampled_from(known_keys()), st.data())
@settings(max_examples=300, deadline=None)
def test_any_misspelt_key_is_refused(key, data):
    where = data.draw(st.integers(0, len(key) - 1))
    letter = data.draw(st.sampled_from("abcdefghijklmnopqrstuvwxyz_"))
    misspelt = data.draw(
        st.sampled_from(
            [
                key[:where] + key[where + 1 :],
                key[:where] + letter + key[where:],
                key[:where] + letter + key[where + 1 :],
            ]
        )
    )
    if misspelt in known_keys():
        return
    if not misspelt:
        return
    message = refusal(f"{misspelt}=1")
    assert message.startswith(f"{misspelt}: unknown key; did you mean ")
    assert message.removesuffix("?").rpartition(" ")[2] in known_keys()
    nested: object = 1
    for part in reversed(misspelt.split(".")):
        nested = {part: nested}
    with pytest.raises(ConfigError, match="unknown key"):
        build_config(nested)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.temprature=1", "rollout.temprature: unknown key; did you mean rollout.temperature?"),
        (
            "temperature=1",
            "temperature=1; allowed: a section with controller, metric, every, low, high, step, n, k, problems, "
            "budget, margin, balance_target; did you mean rollout.temperature?",
        ),
        ("train.lr=1", "train.lr: unknown key; did you mean train.learning_rate?"),
        ("rollout.num_generations=1", "rollout.num_generations: unknown key; did you mean rollout.n?"),
        ("rollout.n.x=3", "rollout.n.x: unknown key; did you mean rollout.n?"),
        ("rollout.temperature=-1", "rollout.temperature=-1; allowed: a number, 0 or more"),
        ("rollout.n=1.5", "rollout.n=1.5; allowed: a whole number, 1 or more"),
        ("rollout.n=true", "rollout.n=true; allowed: a whole number, 1 or more"),
        ("rollout.n=many", 'rollout.n="many"; allowed: a whole number, 1 or more'),
        ("train.learning_rate=.nan", "train.learning_rate=NaN; allowed: a number, above 0"),
        ("rollout.kv_cache_memory=0", "rollout.kv_cache_memory=0; allowed: auto; or a whole number, 1048576 or more"),
        ("rollout.decode=graphs", 'rollout.decode="graphs"; allowed: one of auto, eager, fixed'),
        ("rollout.decode=null", "rollout.decode=null; allowed: one of auto, eager, fixed"),
        ("rollout.torch_compile=1", "rollout.torch_compile=1; allowed: true or false"),
        (
            "rollout={decode: eager, torch_compile: true}",
            "rollout.torch_compile=true; allowed: false with rollout.decode=eager",
        ),
        ("rollout.image_cache_memory=-1", "rollout.image_cache_memory=-1; allowed: auto; or a whole number, 0 or more"),
        (
            "rollout.image_cache_memory=1GB",
            'rollout.image_cache_memory="1GB"; allowed: auto; or a whole number, 0 or more',
        ),
        ("train.bf16=true", "train.bf16=true; allowed: false, or model.dtype=bfloat16 or auto"),
        (
            "train.packing=true",
            "train.packing=true; allowed: false, or train.max_tokens of 1 or more, the tokens of a row",
        ),
        ("train.use_liger_kernel=1", "train.use_liger_kernel=1; allowed: auto; or true or false"),
        ("train.use_liger_kernel=yes", 'train.use_liger_kernel="yes"; allowed: auto; or true or false'),
        ("train.max_tokens=-1", "train.max_tokens=-1; allowed: a whole number, 0 or more"),
        ("model.device=gpu", 'model.device="gpu"; allowed: one of auto, cpu, cuda'),
        ("model.dtype=fp8", 'model.dtype="fp8"; allowed: one of float32, bfloat16, float16, auto'),
        ("output_dir=", 'output_dir=""; allowed: text, not empty'),
        (
            "evolve.interval=1",
            "evolve.interval=1; allowed: 1.0 for all problems, a share below it, or 2 problems or more",
        ),
        ("train.lr_scheduler_type=cosine", "train.max_steps=-1; allowed: 1 or more with lr_scheduler_type=cosine"),
        ("evaluate.pass_at_k=99", "evaluate.pass_at_k=99; allowed: at most evaluate.pass_at_k_n=8"),
        ("evaluate.reward_pass_at_k=9", "evaluate.reward_pass_at_k=9; allowed: at most evaluate.pass_at_k_n=8"),
        (
            "temperature.step=1e-9",
            "temperature.step=1e-09; allowed: 0.0013 to 1.3: 2 to 1000 temperatures from temperature.low to "
            "temperature.high",
        ),
        ("temperature.low=1e-7", "temperature.low=1e-07; allowed: a number, 0.01 or more"),
        ("temperature.high=0.2", "temperature.high=0.2; allowed: above temperature.low=0.3"),
        ("temperature.k=9", "temperature.k=9; allowed: at most temperature.n=8"),
        ("temperature.n=40", "temperature.n=40; allowed: at most 34: 15 temperatures x n within rollout.max_rows=512"),
        ("select.k=17", "select.k=17; allowed: at most rollout.n=16"),
        (
            "evolve.iterations=0",
            "evolve.iterations=0; allowed: 1 or more, or -1: evolve.passes decides; without "
            "evolution, leave evolve out of stages",
        ),
        ("rollout.n", "'rollout.n': an override is written key=value, as in rollout.temperature=0.9"),
        ("rollout.n={a: 1, a: 2}", "rollout.n: line 1: a is given twice"),
    ],
)
def test_refusals(override, message):
    assert refusal(override) == message


def test_refused_stage_order_and_section():
    assert refusal("stages=[evolve, warmup]").startswith(
        'stages=["evolve", "warmup"]; allowed: one or more of pretrain,'
    )
    assert refusal("rollout=3").startswith("rollout=3; allowed: a section with n, temperature,")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("seed: 1\nseed: 2\n", "line 2: seed is given twice"),
        ("- 1\n", "allowed: a mapping"),
        ("seed: 1\nrollout: [1\n", "not valid YAML"),
        ("seed: 1\n  n: 2\n", "line 2: not valid YAML"),
        ("1: 2\n", "a key must be text"),
        ("extends: nowhere\n", "recipe 'nowhere': no such file"),
        ("extends: 3\n", "extends=3"),
        ("seed: " + "9" * 5000, "5000 digits"),
        ("{" * 5000, "not valid YAML"),
        ("seed: \x00", "not valid YAML"),
        ("rollout: {n: 1}\nmodle: {}\n", "modle: unknown key; did you mean model?"),
        ("seed: !!python/object:os.system 1\n", "not valid YAML"),
    ],
)
def test_bad_files(tmp_path, text, part):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_missing_undecodable_and_circular_files(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no such file, and no recipe of that name; recipes: ablation, default, smoke"
    ):
        load_config("nothing.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "binary.yaml")
    (tmp_path / "a.yaml").write_text("extends: b.yaml")
    (tmp_path / "b.yaml").write_text("extends: a.yaml")
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(tmp_path / "a.yaml")


def test_empty_file_is_the_defaults(tmp_path):
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_config(tmp_path / "empty.yaml") == RunConfig()


def test_hash_ignores_what_does_not_matter():
    base = config_hash(RunConfig())
    alike = ("output_dir=elsewhere", "threads=3", "stages=[report]", "model.device=cpu", "train.max_tokens=512")
    alike += ("train.gradient_checkpointing=true", "train.use_liger_kernel=false", "train.bf16=false")
    alike += ("rollout.decode=fixed", "rollout.torch_compile=true", "rollout.image_cache_memory=0")
    for override in alike:
        assert config_hash(load_config(None, [override])) == base
    for override in ("seed=1", "rollout.n=3", "model.dtype=bfloat16", "evolve.interval=0.5", "model.lora_r=4"):
        assert config_hash(load_config(None, [override])) != base
    assert config_hash(load_config(None, ["model.dtype=auto", "train.bf16=true"])) not in (
        base,
        config_hash(load_config(None, ["model.dtype=auto"])),
    )


def test_later_keys_default_to_what_runs_did_without_them():
    defaults = flat_config(dataclasses.asdict(RunConfig()))
    assert {key: defaults[key] for key in LATER} == LATER


def test_the_type_of_the_parameters():
    assert RunConfig().dtype == load_config(None, ["model.dtype=auto"]).dtype == "float32"
    assert load_config(None, ["model.dtype=auto", "train.bf16=true"]).dtype == "bfloat16"
    assert load_config(None, ["model.dtype=float16"]).dtype == "float16"


def test_sections_refuse_values_when_built_by_hand():
    with pytest.raises(ValueError, match="pass_at_k"):
        EvaluateConfig(pass_at_k=3, pass_at_k_n=2)
    with pytest.raises(ValueError, match="temperature"):
        dataclasses.replace(RolloutConfig(), temperature=-1.0)


def test_adapters():
    config = load_config(None, ["model.lora_r=8", "model.lora_target_modules=[q_proj, mlp]", "rollout.merge_lora=true"])
    assert config.model.lora_target_modules == ["q_proj", "mlp"] and build_config(dataclasses.asdict(config)) == config
    alike = load_config(None, ["model.lora_r=8", "model.lora_target_modules=[q_proj, mlp]"])
    assert config_hash(alike) == config_hash(config)
    for overrides, message in (
        (["model.lora_r=-1"], "model.lora_r=-1; allowed: a whole number, 0 or more"),
        (["model.lora_r=4", "model.lora_dropout=1.0"], "model.lora_dropout=1.0; allowed: a number, 0 or more, below 1"),
        (["model.lora_dropout=0.1"], "model.lora_dropout=0.1; allowed: 0.0, or model.lora_r of 1 or more"),
        (["model.lora_alpha=8.0"], "model.lora_alpha=8.0; allowed: 32.0, or model.lora_r of 1 or more"),
        (["model.lora_target_modules=[q_proj]"], 'model.lora_target_modules=["q_proj"]; allowed: all-linear, or'),
        (["model.lora_r=4", "model.lora_target_modules=[]"], "allowed: all-linear; or a list of text, not empty"),
        (["model.lora_r=4", "model.lora_target_modules=q_proj"], "allowed: all-linear; or a list of text, not empty"),
        (["rollout.merge_lora=true"], "rollout.merge_lora=true; allowed: false, or model.lora_r of 1 or more"),
        (["model.lora_rank=4"], "model.lora_rank: unknown key; did you mean model.lora_r?"),
        (["train.lora_dropout=0.1"], "did you mean model.lora_dropout?"),
        (["model.freeze_vit=true"], "did you mean model.freeze_vision_tower?"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_config(None, overrides)
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_mapping_is_one_value(tmp_path: Path) -> None:
    """What a recipe says of a section joins what it extends; a key's value is replaced, whatever its type."""
    (tmp_path / "below.yaml").write_text(
        "data: {fields: {gold: answer}, limit: 3}\nevaluate: {benchmarks: {a: x, b: y}}"
    )
    (tmp_path / "above.yaml").write_text("extends: below.yaml\ndata: {fields: {id: pid}}")
    config = load_config(tmp_path / "above.yaml", ["evaluate.benchmarks={c: z}", "evaluate.n=4"])
    assert config.data.fields == {"id": "pid"} and config.data.limit == 3
    assert config.evaluate.benchmarks == {"c": "z"} and config.evaluate.n == 4
