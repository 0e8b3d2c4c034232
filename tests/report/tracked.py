"""What the tests of trackers share: values to log, a tracker that raises, TensorBoard files read back."""

from pathlib import Path

from mstar_engine.train.trainer import StepStats

ROOT = Path(__file__).parent.parent.parent
STEP = StepStats(step=4, loss=0.25, tokens=10, grad_norm=1.5, learning_rate=1e-3)
GREEDY = {"value": 0.5, "low": 0.25, "high": 0.75, "items": 8}


class Broken:
    """A tracker that raises where it is told to."""

    package = ""

    def __init__(self, place: str, error: BaseException) -> None:
        self.place, self.error, self.calls = place, error, []

    def start(self, run, config, directory) -> None:
        self._reach("start")

    def log(self, axis, step, values) -> None:
        self._reach("log")

    def finish(self) -> None:
        self._reach("finish")

    def _reach(self, place: str) -> None:
        self.calls.append(place)
        if place == self.place:
            raise self.error


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
