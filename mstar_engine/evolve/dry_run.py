"""What an operator wants to know before renting GPUs: rows, prompts, memory by phase and the samples of a run.

Everything that a run would refuse at its start is refused here. No weights are read: sizes, widths and which layers go
through the attention hook are asked of the model without weights (`blank_model`), and only of a family whose code wants
values the checkpoint is loaded. Nothing is written but what reading the data keeps in data.cache_dir.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from transformers import PreTrainedModel, ProcessorMixin

from mstar_engine.config import RunConfig
from mstar_engine.data.quarantine import Quarantine
from mstar_engine.evolve.dry_run_page import SETS, memory_lines, model_lines, prompt_lines, row_lines, sized, work_lines
from mstar_engine.evolve.evaluate import TINY
from mstar_engine.evolve.hint import HintedPrompts, can_hint
from mstar_engine.evolve.memory_plan import MemoryPlan, Prompt
from mstar_engine.evolve.policy import prepare, prompt_encoder
from mstar_engine.evolve.process_reward import POLICY, prm_path
from mstar_engine.evolve.prompt_sample import PromptSample, sample_prompts, spread_over
from mstar_engine.evolve.prompts import Prompts
from mstar_engine.evolve.session import check, check_model, check_training, config_of, quiet, read_data
from mstar_engine.evolve.workload import workload
from mstar_engine.models.compatibility import KVShape, asks_for_values, image_token_id, probe
from mstar_engine.models.export import tensors_of
from mstar_engine.models.loading import blank_model, device_of, load_config_of, load_model, load_processor
from mstar_engine.models.model_size import ModelSize, model_size
from mstar_engine.models.sequence_limit import sequence_limit
from mstar_engine.models.tiny import build_tiny
from mstar_engine.types import Problem

ENCODED, ENCODED_ELSEWHERE = 32, 8
"""Prompts that are encoded of the training set, and of each other."""
HINTED = "train, answers shown"


@dataclass(frozen=True, slots=True)
class _Policy:
    """The policy without weights, and its processor. `read`: its weights were needed after all."""

    model: PreTrainedModel
    processor: ProcessorMixin
    shape: KVShape
    size: ModelSize
    read: bool


def dry_run(config: RunConfig) -> int:
    """Read the data, look at the model, and print what a run would do and need. ValueError as a run raises it."""
    quiet()
    check_model(config)
    check_training(config)
    policy = _policy(config)
    kind, weights = (
        f"{type(policy.model).__name__} ({policy.model.config.model_type})",
        _weights_in_words(config, policy),
    )
    _show(model_lines(config, kind, policy.size, policy.shape, weights))
    counted: dict[str, Quarantine] = {}
    data, benchmarks = read_data(config, counted=counted)
    check(config, data, benchmarks)
    sets = {name: problems for name in SETS if (problems := getattr(data, name))}
    sets |= {one.name: one.problems for one in benchmarks}
    _show(row_lines(sets, counted))
    samples = _samples(config, sets, policy)
    _show(prompt_lines(samples))
    plan = _plan(config, sets, policy, samples)
    _refuse_too_long(config, policy.model, samples)
    _show(memory_lines(config, plan))
    typical = next(iter(samples.values())).tokens.median
    _show(work_lines(config, workload(config, data, benchmarks), typical))
    if data.train and (mixed := Prompts(config, data.train, data.unlabelled).in_words()) is not None:
        print(f"prompts: {mixed}")
    return 0


def _show(lines: list[str]) -> None:
    """Print a section as soon as it is known: reading a large data set takes minutes."""
    if lines:
        print("\n".join(lines), flush=True)


def _policy(config: RunConfig) -> _Policy:
    name, trust = config.model.model_name_or_path, config.model.trust_remote_code
    processor = build_tiny(config.seed)[1] if name == TINY else load_processor(name, trust_remote_code=trust)
    model = blank_model(config_of(config), config.dtype, trust_remote_code=trust)
    shape, read = _shape(model, config, name)
    prepare(model, config)
    return _Policy(model, processor, shape, model_size(model, shape), read)


def _shape(model: PreTrainedModel, config: RunConfig, name: str | Path) -> tuple[KVShape, bool]:
    """What each layer keeps, and whether weights had to be read for it. ValueError for a model that the engine cannot
    run."""
    try:
        return probe(model), False
    except RuntimeError as error:
        if name == TINY or not asks_for_values(error):
            raise
    loaded, _ = load_model(
        name,
        dtype=config.dtype,
        device=device_of(config.model.device),
        trust_remote_code=config.model.trust_remote_code,
    )
    return probe(loaded), True


def _weights_in_words(config: RunConfig, policy: _Policy) -> str:
    """Whether the weights are there, as far as headers tell. ValueError for files that are missing or damaged."""
    name = config.model.model_name_or_path
    if name == TINY:
        return "made by the run"
    checked = "read, since the family's code asks for values" if policy.read else "not read"
    if not Path(name).is_dir():
        return f"a name on the hub, {checked}"
    try:
        files = {path for path, _ in tensors_of(name).values()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"model.model_name_or_path={name}: its weights cannot be read ({error})") from error
    stored = sum(path.stat().st_size for path in files)
    return f"{len(files)} file{'s' * (len(files) > 1)}, {sized(stored)}: headers are sound, tensors {checked}"


def _samples(config: RunConfig, sets: Mapping[str, Sequence[Problem]], policy: _Policy) -> dict[str, PromptSample]:
    """Of each set, what some prompts look like; of the training set also with the answers in them, where the warm-up
    samples so."""
    encoder = prompt_encoder(policy.processor, config)
    token = image_token_id(policy.model.config, policy.processor)
    found = {}
    for name, problems in sets.items():
        count = ENCODED if name == "train" else ENCODED_ELSEWHERE
        found[name] = sample_prompts(problems, encoder, token, count)
    if "warmup" in config.stages and config.warmup.source == "sampled":
        shown = [problem for problem in spread_over(sets["train"], ENCODED_ELSEWHERE) if can_hint(problem)]
        if shown:
            found[HINTED] = sample_prompts(shown, HintedPrompts.of(policy.processor, config), token, len(shown))
    return found


def _refuse_too_long(config: RunConfig, model: PreTrainedModel, samples: Mapping[str, PromptSample]) -> None:
    name = max(samples, key=lambda name: samples[name].tokens.most)
    prompt = samples[name].tokens.most
    asked = config.rollout.max_completion_length
    limit = sequence_limit(model.config)
    if limit is not None and prompt + asked > limit:
        room = f"at most {limit - prompt}" if prompt < limit else f"prompts below {limit} tokens, the model's positions"
        raise ValueError(
            f"rollout.max_completion_length={asked}: with a prompt of {prompt} tokens ({SETS.get(name, name)}), "
            f"allowed: {room}"
        )


def _plan(
    config: RunConfig, sets: Mapping[str, Sequence[Problem]], policy: _Policy, samples: Mapping[str, PromptSample]
) -> MemoryPlan:
    longest = max(one.tokens.most for one in samples.values())
    numbers = max(one.inputs.most for one in samples.values())
    width = policy.size.language.hidden * policy.size.itemsize
    features = sum(
        len(problems) * samples[name].images.most * samples[name].image_tokens.most * width
        for name, problems in sets.items()
    )
    prompt = Prompt(tokens=longest, patches=-(-numbers // policy.size.patch), features=features)
    # Half precision on a processor is for looking at what will run on a GPU.
    on_gpu = device_of(config.model.device).type == "cuda" or config.dtype != "float32"
    return MemoryPlan(config, policy.size, policy.shape, prompt, _scorer(config, policy), on_gpu=on_gpu)


def _scorer(config: RunConfig, policy: _Policy) -> ModelSize | None:
    """The process reward model, which is fitted whole; None where a run has none."""
    name, fitted = config.prm.model_name_or_path, prm_path(Path(config.output_dir))
    if name == POLICY and "prm" not in config.stages and not fitted.exists():
        return None
    if name == POLICY:
        model = blank_model(policy.model.config, config.dtype, trust_remote_code=config.model.trust_remote_code)
        return model_size(model, policy.shape)
    model = blank_model(load_config_of(name, "prm.model_name_or_path"), config.dtype)
    return model_size(model, _shape(model, config, name)[0])
