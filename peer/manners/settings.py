"""The owner's settings: one small TOML file in the peer's folder, written with its comments at the first start."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from configs.load import SpecError, check
from peer.errors import ConfigError
from peer.manners.schedule import Window

FILE_NAME = "settings.toml"
MEGABIT_BYTES = 1e6 / 8

TEXT = """\
# How this peer treats your machine. Changes count within seconds, while it runs, unless marked "at start".
# Options of `commonweights join` go before what stands here. Delete the file to get it back as it was.

[network]
upload_mbit = 0.0            # upload at most so many Mbit/s; 0: no limit of yours
download_mbit = 0.0          # and download
metered = "auto"             # "yes": no training and no transfers, only a sign of life; "no": never mind; "auto": as
                             # NetworkManager says, where there is one
port = 0                     # listen on this TCP port, at start, so that a router can forward it; 0: any free one

[device]
duty_percent = 100           # compute for so many percent of the time and rest in between: quieter and cooler
memory_gb = 0.0              # use at most so many GB of the GPU's memory, at start; 0: what there is
threads = 0                  # compute with so many CPU cores, at start; 0: all that it may use
nice = 10                    # let other programs go first: 0 (like everybody) to 19 (last of all), at start

[schedule]
hours = []                   # train only then, local time: ["22:00-07:00"], or with days:
                             # ["Mon-Fri 19:00-08:00", "Sat,Sun 00:00-24:00"]

[pause]
gpu_in_use = true            # while another program computes or plays on the GPU
on_battery = true            # while the machine runs on its battery
cpu_celsius = 95             # while the processor is at or above this temperature; 0: never mind
gpu_celsius = 87             # and the GPU
calm_seconds = 60            # how long that must be over before training goes on

[disk]
cache_gb = 20.0              # keep at most so much: training data, contributions and states of the run. Training data
                             # gives way to the others, which the run needs, down to a quarter of this

[metrics]
port = 0                     # figures for Prometheus at http://127.0.0.1:PORT/metrics, at start; 0: none
"""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Network(Section):
    upload_mbit: float = Field(default=0.0, ge=0.0)
    download_mbit: float = Field(default=0.0, ge=0.0)
    metered: Literal["auto", "yes", "no"] = "auto"
    port: int = Field(default=0, ge=0, le=65535)

    @property
    def upload_bytes_per_second(self) -> float | None:
        return self.upload_mbit * MEGABIT_BYTES or None

    @property
    def download_bytes_per_second(self) -> float | None:
        return self.download_mbit * MEGABIT_BYTES or None


class Device(Section):
    duty_percent: int = Field(default=100, ge=1, le=100)
    memory_gb: float = Field(default=0.0, ge=0.0)
    threads: int = Field(default=0, ge=0)
    nice: int = Field(default=10, ge=0, le=19)

    @property
    def memory_bytes(self) -> int | None:
        return int(self.memory_gb * (1 << 30)) or None


def _window(value: object) -> object:
    return Window.parse(value) if isinstance(value, str) else value


class Schedule(Section):
    hours: tuple[Annotated[Window, BeforeValidator(_window)], ...] = ()


class Pause(Section):
    gpu_in_use: bool = True
    on_battery: bool = True
    cpu_celsius: float = Field(default=95, ge=0)
    gpu_celsius: float = Field(default=87, ge=0)
    calm_seconds: float = Field(default=60, ge=0)


class Disk(Section):
    cache_gb: float = Field(default=20.0, gt=0.0)

    @property
    def cache_bytes(self) -> int:
        return int(self.cache_gb * 1e9)


class Metrics(Section):
    port: int = Field(default=0, ge=0, le=65535)


class Settings(Section):
    network: Network = Network()
    device: Device = Device()
    schedule: Schedule = Schedule()
    pause: Pause = Pause()
    disk: Disk = Disk()
    metrics: Metrics = Metrics()


Overrides = Mapping[str, Mapping[str, Any]]
"""Section -> key -> value: what the command line said."""


def load(path: Path, overrides: Overrides | None = None) -> Settings:
    """The settings in a file, the command line's word going before; the defaults when there is no file.

    Raises:
        ConfigError: the file's name and what is wrong with which key.
    """
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raw = {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    for section, values in (overrides or {}).items():
        if isinstance(given := raw.get(section, {}), dict):  # else it is refused below, by name
            raw[section] = {**given, **values}
    return checked(raw, str(path))


def checked(raw: dict[str, Any], source: str) -> Settings:
    """Raises ConfigError; `source` opens every line of it."""
    try:
        return check(raw, source, Settings)
    except SpecError as error:
        raise ConfigError(str(error)) from None


def ensure(folder: Path) -> Path:
    """The settings file of a peer's folder, written if it is not there."""
    path = folder / FILE_NAME
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(TEXT, encoding="utf-8")
    return path


ALWAYS: Overrides = {  # a machine that has nothing else to do
    "pause": {"gpu_in_use": False, "on_battery": False, "cpu_celsius": 0, "gpu_celsius": 0},
    "schedule": {"hours": []},
    "network": {"metered": "no"},
    "device": {"duty_percent": 100, "nice": 0},
}


def overrides(*, always: bool = False, **flags: Any) -> Overrides:
    """Flags, named section_key (`network_upload_mbit`), as overrides; what is None was not given.

    Raises:
        ConfigError: a value that the settings do not take.
    """
    found: dict[str, dict[str, Any]] = {section: dict(values) for section, values in ALWAYS.items()} if always else {}
    for flag, value in flags.items():
        section, _, key = flag.partition("_")
        if value is not None:
            found.setdefault(section, {})[key] = value
    checked(found, "command line")
    return found
