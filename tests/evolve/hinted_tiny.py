"""A tiny checkpoint that has been taught what an instruction-tuned model can do: to use an answer that it is told."""

from dataclasses import replace
from pathlib import Path

from mstar_engine.config import RunConfig
from mstar_engine.config_parse import load_config
from mstar_engine.data.digits import digits_problems
from mstar_engine.evolve.hint import HintedPrompts
from mstar_engine.models.loading import save_model
from mstar_engine.models.tiny import build_tiny
from mstar_engine.train.collate import imitate
from mstar_engine.train.schedule import Schedule
from mstar_engine.train.trainer import Trainer
from mstar_engine.types import Problem

# Short: the tiny model reads character by character.
PROMPT = "{question} = {answer}"
# Of eight responses two have what the runs here refuse, and one does not reason; the others have one short step.
REFUSED = "gold"
FORMS = ["red {}\n\n# Answer {}"] * 5 + ["gold {}\n\n# Answer {}"] * 2 + ["# Answer {}"]


def taught(problems: list[Problem]) -> list[Problem]:
    """The problems, without images, with responses that copy the reference answer."""
    shown = [FORMS[i % 8].format(*[i % 3, p.gold][-FORMS[i % 8].count("{}") :]) for i, p in enumerate(problems)]
    return [replace(problem, images=(), response=response) for problem, response in zip(problems, shown)]


def teach(path: Path) -> Path:
    """Write the checkpoint: deterministic, right in about half of its responses, and no training image was seen."""
    model, processor = build_tiny(0)
    encoder = HintedPrompts(processor, template=PROMPT)
    trainer = Trainer(model, encoder, Schedule(peak=3e-3, kind="constant", horizon=80))
    examples = [imitate(problem, encoder) for problem in taught(digits_problems("test", 640, seed=7))]
    for epoch in range(2):
        trainer.train_epoch(examples, batch_size=32, epoch=epoch)
    save_model(model.eval(), processor, path)
    return path


def sampled_config(output: Path, checkpoint: Path, *more: str) -> RunConfig:
    """A short run whose only stage is a warm-up that samples."""
    return load_config("smoke", sampled_overrides(output, checkpoint, *more))


def sampled_overrides(output: Path, checkpoint: Path, *more: str) -> list[str]:
    """The command line of such a run, behind the recipe."""
    return [
        f"output_dir={output}",
        "threads=1",
        "stages=[warmup]",
        f"model.model_name_or_path={checkpoint}",
        "warmup.source=sampled",
        f"warmup.prompt={PROMPT}",
        "warmup.n=4",
        "warmup.keep=2",
        f"warmup.refuse=[{REFUSED}]",
        *more,
    ]
