"""The run directory: one run each, one process at a time, continued only as itself."""

import json
from dataclasses import asdict

import pytest
from PIL import Image

from mstar_engine.config_parse import load_config
from mstar_engine.run_directory import RunDirectory, RunDirectoryError, differences, report_image_path


def config(path, *overrides):
    return load_config(None, [*overrides, f"output_dir={path}"])


def refusal(given, resume):
    with pytest.raises(RunDirectoryError) as caught:
        RunDirectory.create_or_resume(given, resume)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_create_then_resume(tmp_path):
    with RunDirectory.create_or_resume(config(tmp_path / "run")) as run:
        run.journal.append("hello")
    assert "already holds a run; continue it with --resume" in refusal(config(tmp_path / "run"), False)
    with RunDirectory.create_or_resume(config(tmp_path / "run", "threads=1", "stages=[report]"), True) as run:
        assert run.journal.last("hello")
    assert "threads: 1" in (tmp_path / "run" / "config.yaml").read_text()


def test_resume_of_nothing_starts(tmp_path):
    RunDirectory.create_or_resume(config(tmp_path / "run"), resume=True).close()


@pytest.mark.parametrize("resume", [False, True])
def test_another_configuration_is_refused_with_its_keys(tmp_path, resume):
    RunDirectory.create_or_resume(config(tmp_path)).close()
    before = (tmp_path / "config.yaml").read_text()
    message = refusal(config(tmp_path, "rollout.temperature=0.9", "seed=4"), resume)
    assert "rollout.temperature (1.0 there, 0.9 now)" in message and "seed (0 there, 4 now)" in message
    assert "another output_dir, or --resume with the same configuration" in message
    assert (tmp_path / "config.yaml").read_text() == before


def test_a_key_of_another_version_is_named(tmp_path):
    RunDirectory.create_or_resume(config(tmp_path)).close()
    with open(tmp_path / "config.yaml", "a") as file:
        file.write("older: {key: 3}\n")
    assert "older.key (3 there, absent now)" in refusal(config(tmp_path), True)


def test_a_directory_from_before_a_key_is_the_same_run_without_it(tmp_path):
    """A key that came later counts as its default where it is missing, and shows where it changes the run."""
    RunDirectory.create_or_resume(config(tmp_path)).close()
    lines = (tmp_path / "config.yaml").read_text().splitlines(keepends=True)
    later = ("bf16:", "max_tokens:", "packing:", "gradient_checkpointing:", "use_liger_kernel:", "device:")
    later += ("decode:", "torch_compile:", "image_cache_memory:", "merge_lora:", "freeze_vision_tower:")
    later += ("lora_r:", "lora_alpha:", "lora_dropout:", "lora_target_modules:")
    kept = [line for line in lines if not line.strip().startswith(later)]
    assert len(kept) == len(lines) - len(later)
    (tmp_path / "config.yaml").write_text("".join(kept))
    before = (tmp_path / "config.yaml").read_text()
    message = refusal(config(tmp_path, "model.dtype=auto", "train.bf16=true"), True)
    assert "train.bf16 (absent there, True now)" in message and (tmp_path / "config.yaml").read_text() == before
    RunDirectory.create_or_resume(config(tmp_path, "train.gradient_checkpointing=true"), True).close()
    assert "bf16: false" in (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text("".join(line for line in lines if "adam_beta1" not in line))
    assert "train.adam_beta1 (absent there, 0.9 now)" in refusal(config(tmp_path), True)


def test_two_runs_do_not_share_a_folder(tmp_path):
    with RunDirectory.create_or_resume(config(tmp_path)):
        assert "is in use by another run (process" in refusal(config(tmp_path), True)
    RunDirectory.create_or_resume(config(tmp_path), True).close()


def test_a_refused_folder_is_given_back(tmp_path):
    RunDirectory.create_or_resume(config(tmp_path)).close()
    refusal(config(tmp_path, "seed=4"), True)
    RunDirectory.create_or_resume(config(tmp_path), True).close()


def test_unusable_folders(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be used as output_dir" in refusal(config(tmp_path / "file"), False)
    (tmp_path / "journal.jsonl").write_text("")
    assert "holds a journal but no config.yaml" in refusal(config(tmp_path), True)


def test_summary_and_images(tmp_path):
    with RunDirectory.create_or_resume(config(tmp_path)) as run:
        run.write_summary({"a": 1})
        with pytest.raises(ValueError):
            run.write_summary({"a": float("nan")})
        run.write_report_image("digits-1", Image.new("L", (3, 2)))
        run.write_report_image("../../up", Image.new("L", (3, 2)))
        assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 1}
    assert (tmp_path / "report_images" / "digits-1.png").is_file()
    assert report_image_path(tmp_path, "../../up").resolve().parent == (tmp_path / "report_images").resolve()
    assert report_image_path(tmp_path, "../../up").is_file()


def test_differences_of_some_keys():
    """By section, or by one key of a section."""
    plain, put = (asdict(load_config(None, more)) for more in ([], ["prompts.template={question} Go.", "seed=3"]))
    assert "prompts.template" in differences(plain, put, ["prompts.template"])
    assert "prompts.template" in differences(plain, put, ["prompts"])
    for other in (["prompts.system"], ["data"]):
        assert "prompts" not in differences(plain, put, other) and "seed" in differences(plain, put, other)
