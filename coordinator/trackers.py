"""Experiment trackers (W&B, TensorBoard, Aim, MLflow ...), through accelerate.

Each has a thread and a short queue of its own: one that hangs, fails or is far away costs its own figures, and nothing
else. The step is the round.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from configs import RunSpec
from coordinator.evaluate import Evaluation
from coordinator.settings import TrackerSettings
from peer.errors import UsageError

logger = logging.getLogger(__name__)

WAITING_VALUES = 256  # more are dropped
FAILURES = 5  # in a row, then a tracker is left alone
CLOSE_SECONDS = 4.0

Values = dict[str, Any]  # numbers and texts by name


class Trackers:
    """All of one run's; none is an empty list. `close` lets them finish, within `CLOSE_SECONDS`."""

    def __init__(self, lines: list[_Line]) -> None:
        self.lines = lines

    def log(self, values: Values, round_: int) -> None:
        """Hand over the figures of a round; returns at once and never fails."""
        for line in self.lines:
            line.put(values, round_)

    def evaluated(self, evaluation: Evaluation) -> None:
        """Hand over what was measured."""
        figures = {"held_out_loss": evaluation.loss, "perplexity": evaluation.perplexity, "tokens": evaluation.tokens}
        samples = {f"sample/{number}": it.prompt + it.text for number, it in enumerate(evaluation.samples)}
        self.log({**figures, **samples}, evaluation.round)

    def close(self) -> None:
        end = time.monotonic() + CLOSE_SECONDS
        for line in self.lines:
            line.end()
        for line in self.lines:
            line.thread.join(max(0.0, end - time.monotonic()))


def start_trackers(
    settings: TrackerSettings, spec: RunSpec, run_id: bytes, folder: Path, on_event: Callable[[str], None]
) -> Trackers:
    """The trackers of the settings; local ones write to `folder`/trackers.

    Args:
        on_event: told of a tracker that is given up, in that tracker's thread.

    Raises:
        UsageError: one is not installed.
    """
    available = {str(kind) for kind in get_available_trackers()}
    if missing := [name for name in settings.use if name not in available]:
        package = missing[0].replace("_", "-")
        raise UsageError(f"trackers.use: {missing[0]} is not installed here; run: pip install {package}")
    place, project, config = folder / "trackers", settings.project or spec.run.name, _flat(spec)
    return Trackers(
        [
            _Line(name, project, place, {**_defaults(name, run_id, place), **settings.options.get(name, {})}, config,
                  on_event)
            for name in settings.use
        ]
    )  # fmt: skip


class _Line:
    """One tracker and its thread."""

    def __init__(
        self, name: str, project: str, place: Path, options: Values, config: Values, on_event: Callable[[str], None]
    ) -> None:
        self.name = name
        self.project = project
        self.place = place
        self.options = options
        self.config = config
        self.on_event = on_event
        self._queue: queue.Queue[tuple[Values, int] | None] = queue.Queue(WAITING_VALUES)
        self.thread = threading.Thread(target=self._run, name=f"tracker-{name}", daemon=True)
        self.thread.start()

    def put(self, values: Values, round_: int) -> None:
        try:
            self._queue.put_nowait((values, round_))
        except queue.Full:
            logger.info("%s does not keep up; figures of round %d are left out", self.name, round_)

    def end(self) -> None:
        try:
            self._queue.put_nowait(None)
        except queue.Full:  # it hangs, and its thread ends with the process
            logger.info("%s has not taken all figures", self.name)

    def _run(self) -> None:
        tracker, failures = None, 0
        while (item := self._queue.get()) is not None:
            try:
                tracker = tracker or self._start()
                tracker.log(item[0], step=item[1])
                failures = 0
            except Exception as error:  # every tracker has errors of its own
                failures += 1
                logger.info("%s", self.name, exc_info=error)
                if failures == FAILURES:
                    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                    self.on_event(f"{self.name}: no more figures are sent there until the next start: {reason}")
                    return
        try:
            if tracker is not None:
                tracker.finish()
        except Exception as error:  # as above
            logger.info("%s", self.name, exc_info=error)

    def _start(self) -> Any:
        tracker_class = LOGGER_TYPE_TO_CLASS[self.name]
        self.place.mkdir(parents=True, exist_ok=True)
        where = [str(self.place)] if tracker_class.requires_logging_directory else []
        tracker = tracker_class(self.project, *where, **self.options)
        getattr(tracker, "start", lambda: None)()  # older versions of accelerate start at once
        tracker.store_init_configuration(self.config)
        return tracker


def _defaults(name: str, run_id: bytes, place: Path) -> Values:
    """So that a coordinator that is started again goes on with the same run there."""
    return {"id": run_id.hex()[:32], "resume": "allow", "dir": str(place)} if name == "wandb" else {}


def _flat(spec: RunSpec) -> Values:
    """The run spec as section.key: number or text."""
    flat: Values = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value if isinstance(value, int | float | str) else str(value)

    add("", spec.model_dump(mode="json"))
    return flat
