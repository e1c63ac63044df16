"""What the organiser decides alone: where checkpoints go and who is told of the figures.

It is no part of the run spec, because no peer has to agree on it, and may change with every start. It is read from
`--settings FILE`, else from `coordinator.toml` in the run's folder; configs/coordinator.toml explains every key.
Secrets are not in it: tokens and keys come from the environment, as the libraries behind each destination read them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from configs import SpecError
from configs.load import check, read_toml
from configs.schema import NonNegative, Positive, Section
from peer.errors import ConfigError

FILE_NAME = "coordinator.toml"
TRACKERS = ("tensorboard", "wandb", "aim", "mlflow", "comet_ml", "clearml", "dvclive", "swanlab", "trackio")


class CheckpointSettings(Section):
    every_rounds: Positive = 10
    keep_last: Positive = 3
    keep_every: NonNegative = 0  # and for good the first checkpoint of every so many rounds; 0: none
    upload: list[Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://.")]] = Field(default_factory=list)
    upload_mbit: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0  # 0: no limit
    private: bool = True  # repositories that are made on the Hugging Face Hub


class TrackerSettings(Section):
    use: list[str] = Field(default_factory=list)
    project: str = ""  # empty: the run's name
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict
    )  # by tracker: keyword arguments of its own initialisation

    @field_validator("use")
    @classmethod
    def _known(cls, value: list[str]) -> list[str]:
        if unknown := sorted(set(value) - set(TRACKERS)):
            raise ValueError(f"unknown tracker {unknown[0]!r}; use {', '.join(TRACKERS)}")
        return value


class Settings(Section):
    checkpoints: CheckpointSettings = CheckpointSettings()
    trackers: TrackerSettings = TrackerSettings()


def load_settings(given: Path | None, folder: Path) -> Settings:
    """The settings in the file that was given, else in the run's folder, else the defaults.

    Raises:
        ConfigError: the file is missing, is not TOML, or has a wrong key; one line for each.
    """
    path = given or folder / FILE_NAME
    try:
        return check(read_toml(path), str(path), Settings)
    except FileNotFoundError:
        if given is None:
            return Settings()
        raise ConfigError(f"--settings {given}: no such file; see configs/coordinator.toml for an example") from None
    except SpecError as error:
        raise ConfigError(str(error)) from None
