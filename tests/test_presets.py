"""Presets: the rows of the paper's tables, complete, distinct, and as the paper has them."""

import pytest

from mstar_engine.config import RunConfig
from mstar_engine.config_parse import ConfigError, build_config, flat_config, load_config
from mstar_engine.evolve.methods import METHODS
from mstar_engine.presets import ABLATIONS, PRESETS, preset_mapping


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_a_configuration(name: str) -> None:
    config = load_config(None, [f"preset={name}"])
    assert config.preset == name
    for key, value in PRESETS[name].overrides.items():
        section, _, field = key.partition(".")
        assert getattr(getattr(config, section), field) == value


def test_the_default_run_is_mstar() -> None:
    assert load_config(None, ["preset=mstar"]) == load_config("default") == RunConfig()
    config = RunConfig()
    assert (config.evolve.method, config.evolve.interval, config.select.kind, config.select.k) == (
        "continuous",
        0.25,
        "top_k",
        2,
    )
    assert config.temperature.controller != "fixed" and config.temperature.metric == "reward_pass_at_k"


def test_presets_name_the_same_keys() -> None:
    """So that one laid over another leaves nothing of it."""
    assert len({frozenset(preset.overrides) for preset in PRESETS.values()}) == 1
    for below in PRESETS:
        twice = load_config(None, [f"preset={below}", "preset=top_4"])
        assert twice == load_config(None, ["preset=top_4"])


def test_a_preset_goes_over_the_recipe_and_below_the_other_overrides(tmp_path) -> None:
    recipe = tmp_path / "my.yaml"
    recipe.write_text("preset: rest_em\nevolve:\n  interval: 0.5\ntrain:\n  learning_rate: 0.5\n")
    config = load_config(recipe)
    assert (config.evolve.method, config.evolve.interval, config.preset) == ("rest_em", 0.5, "rest_em")
    config = load_config(recipe, ["select.k=3", "preset=top_1", "evolve.interval=0.75"])
    assert (config.evolve.method, config.evolve.interval, config.select.k) == ("continuous", 0.75, 3)
    assert config.train.learning_rate == 0.5


def test_the_methods_table_sees_the_same_amount_of_data() -> None:
    for _, name in ABLATIONS["paper_methods"].rows:
        evolve = load_config(None, [f"preset={name}"]).evolve
        assert evolve.iterations_of(1536) * evolve.problems_of(1536) == 2 * 1536


def test_tables_are_the_papers() -> None:
    """Every row of sections 3 to 5 and the published row of section 6; figures spelled out once more."""
    figures = {name: [PRESETS[preset].paper for _, preset in ablation.rows] for name, ablation in ABLATIONS.items()}
    assert figures["paper_methods"] == [
        (44.3, 54.8), (42.3, 55.7), (42.3, 55.1), (42.2, 56.7), (43.1, 56.2), (43.1, 57.2), (42.3, 56.1), (41.0, 56.8),
    ]  # fmt: skip
    assert figures["paper_selection"] == [
        (43.1, 57.2), (41.0, 55.5), (43.8, 57.5), (43.0, 59.0), (45.3, 59.2), (44.0, 58.4)
    ]  # fmt: skip
    assert figures["paper_prompts"] == [
        (43.1, 57.2), (45.3, 59.2), (42.5, 58.2), (42.9, 59.1), (43.3, 58.2), (42.4, 57.6), (42.9, 58.2), (45.0, 58.8),
    ]  # fmt: skip
    assert (45.9, 59.5) in figures["paper_temperature"] and (42.8, 58.0) in figures["paper_temperature"]
    for ablation in ABLATIONS.values():
        assert ablation.reference in [preset for _, preset in ablation.rows]
    assert {PRESETS[preset].overrides["evolve.method"] for preset in PRESETS} == set(METHODS)


def test_rows_of_a_table_differ() -> None:
    for ablation in ABLATIONS.values():
        settings = [flat_config(preset_mapping(preset) | {"preset": ""}) for _, preset in ablation.rows]
        assert all(a != b for i, a in enumerate(settings) for b in settings[:i])


@pytest.mark.parametrize("name", ["msta", "top2", "Mstar"])
def test_an_unknown_preset_is_answered_with_the_list(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(None, [f"preset={name}"])
    message = str(error.value)
    assert message.startswith(f"preset={name}: no such preset; did you mean ") and "\n" not in message
    assert all(known in message for known in PRESETS)


def test_a_written_configuration_is_not_overridden_by_its_preset() -> None:
    """config.yaml names the preset; reading it back does not lay the preset over what was changed."""
    changed = load_config(None, ["preset=top_2", "select.k=5"])
    mapping = {"preset": changed.preset, "select": {"kind": "top_k", "k": 5}}
    assert build_config(mapping).select.k == 5
