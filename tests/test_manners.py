"""What the owner allows: settings, hours, orders, and the verdicts that follow from them."""

from __future__ import annotations

import asyncio
import os
import re
import tomllib
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.errors import ConfigError, UsageError
from peer.manners import machine, orders, settings, steward
from peer.manners.decide import FREE, Conduct, Facts, Verdict, follow, judge, rest_seconds
from peer.manners.orders import Order
from peer.manners.schedule import Window, is_open, opens
from peer.manners.settings import Settings, checked, load, overrides
from peer.manners.steward import Steward
from tests.commands import run

MONDAY = datetime(2026, 3, 2)  # midnight


def at(clock: str, day: int = 0) -> datetime:
    hour, minute = map(int, clock.split(":"))
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("window", "inside", "outside"),
    [
        ("22:00-07:00", [at("22:00"), at("23:59"), at("00:00"), at("06:59", 3)], [at("07:00"), at("21:59")]),
        ("09:00-17:30", [at("09:00"), at("17:29")], [at("17:30"), at("08:59"), at("00:00")]),
        ("Mon-Fri 22:00-07:00", [at("22:00", 4), at("06:00", 5)], [at("22:00", 5), at("06:00", 0), at("06:00", 6)]),
        ("Sat,Sun 00:00-24:00", [at("00:00", 5), at("23:59", 6)], [at("23:59", 4), at("00:00", 7)]),
        ("Fri-Mon 12:00-13:00", [at("12:30", day) for day in (4, 5, 6, 0)], [at("12:30", 1), at("12:30", 3)]),
    ],
)
def test_hours_of_the_week(window: str, inside: list[datetime], outside: list[datetime]) -> None:
    """The beginning belongs to a window, its end does not; one that crosses midnight belongs to the day it began."""
    parsed = [Window.parse(window)]
    assert all(is_open(parsed, moment) for moment in inside)
    assert not any(is_open(parsed, moment) for moment in outside)


@pytest.mark.parametrize(
    "text", ["", "22-7", "22:00-22:00", "24:00-07:00", "25:00-07:00", "Mo 09:00-10:00", "22:60-7:00"]
)
def test_hours_that_are_none_are_refused(text: str) -> None:
    """What is no window of the week is refused, and the settings file names the key."""
    with pytest.raises(ValueError, match=r"write|no time|no day"):
        Window.parse(text)
    with pytest.raises(ConfigError, match=r"^here: schedule\.hours\.0: "):
        checked({"schedule": {"hours": [text]}}, "here")


@given(
    days=st.frozensets(st.integers(0, 6), min_size=1),
    start=st.integers(0, 1439),
    minutes=st.integers(1, 1440),
    moment=st.integers(0, 14 * 1440).map(lambda minute: MONDAY + timedelta(minutes=minute)),
)
def test_the_next_start_is_the_next_time_it_opens(
    days: frozenset[int], start: int, minutes: int, moment: datetime
) -> None:
    """`next_start` lies ahead, inside the window, and no minute before it is a beginning."""
    window = Window(days, start, minutes)
    next_ = window.next_start(moment)
    assert moment < next_ <= moment + timedelta(days=7) and window.contains(next_)
    assert (next_.hour * 60 + next_.minute, next_.weekday() in days) == (start, True)


def test_when_it_opens_in_words() -> None:
    """Within a day a time of day is enough; beyond it the weekday is said too."""
    windows = [Window.parse("22:00-07:00")]
    assert opens(windows, at("12:00")) == "22:00"
    assert opens([Window.parse("Sat 09:00-10:00")], at("12:00")) == "Sat 09:00"


def test_the_file_that_is_written_says_the_defaults() -> None:
    """Every key of the settings stands in the file, with its default and a comment; nothing else does."""
    assert checked(tomllib.loads(settings.TEXT), "text") == Settings()
    written = {(section, key) for section, values in tomllib.loads(settings.TEXT).items() for key in values}
    known = {
        (section, key)
        for section, field in Settings.model_fields.items()
        for key in field.annotation.model_fields  # type: ignore[union-attr]
    }
    assert written == known
    assert all("#" in line for line in settings.TEXT.splitlines() if " = " in line)


def test_flags_go_before_the_file(tmp_path: Path) -> None:
    """What the command line says wins over the file, key by key."""
    path = settings.ensure(tmp_path)
    path.write_text("[network]\nupload_mbit = 5\ndownload_mbit = 7\n")
    found = load(path, overrides(network_upload_mbit=1.0, network_download_mbit=None))
    assert (found.network.upload_mbit, found.network.download_mbit) == (1.0, 7.0)
    assert found.network.upload_bytes_per_second == 125_000
    assert settings.ensure(tmp_path).read_text() != settings.TEXT, "an existing file is left alone"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[network]\nupload_mbits = 5", r"unknown key 'network.upload_mbits'; did you mean 'upload_mbit'"),
        ("[device]\nduty_percent = 0", r"device\.duty_percent: "),
        ("[network]\nmetered = true", r"network\.metered: "),
        ("device = 3", r"device: "),
        ("[network", "not valid TOML"),
    ],
)
def test_wrong_settings_name_the_key(text: str, says: str, tmp_path: Path) -> None:
    """The file, the key and what is expected, in one line."""
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))


HOT = Facts(cpu_celsius=99.0)


@pytest.mark.parametrize(
    ("wishes", "facts", "reason"),
    [
        ({}, Facts(), ""),
        ({}, Facts(on_battery=False, cpu_celsius=60, gpu_celsius=80, metered=False), ""),
        ({}, Facts(on_battery=True), "battery"),
        ({"pause": {"on_battery": False}}, Facts(on_battery=True), ""),
        ({}, Facts(gpu_user="game"), r"GPU \(game\)"),
        ({"pause": {"gpu_in_use": False}}, Facts(gpu_user="game"), ""),
        ({}, HOT, "processor is hot"),
        ({}, Facts(gpu_celsius=87.0), "GPU is hot"),
        ({"pause": {"cpu_celsius": 0}}, HOT, ""),
        ({"schedule": {"hours": ["22:00-07:00"]}}, Facts(), "goes on at 22:00"),
        ({"schedule": {"hours": ["09:00-13:00"]}}, Facts(), ""),
        ({}, Facts(metered=True), "metered"),
        ({"network": {"metered": "no"}}, Facts(metered=True), ""),
        ({"network": {"metered": "yes"}}, Facts(metered=False), "metered"),
    ],
)
def test_verdicts(wishes: dict[str, Any], facts: Facts, reason: str) -> None:
    """Each condition pauses, says its reason, and can be switched off; on a metered link nothing large moves either."""
    verdict = judge(checked(wishes, "test"), facts, None, at("12:00"))
    assert bool(verdict.reason) == bool(reason) and re.search(reason, verdict.reason), verdict
    assert verdict.offline == ("metered" in reason)


def test_an_order_holds_until_its_time() -> None:
    """`pause --minutes` ends by itself; without an end it holds. The owner's order is the first reason named."""
    now = at("12:00")
    assert "resume" in judge(Settings(), HOT, Order(), now).reason
    assert "until 12:30" in judge(Settings(), Facts(), Order(at("12:30").timestamp()), now).reason
    assert judge(Settings(), Facts(), Order(at("12:00").timestamp()), now) == FREE


def test_what_comes_and_goes_must_stay_away() -> None:
    """A lingering reason holds until it has been gone for the calm time; an order's end counts at once."""
    hot = Verdict("hot", lingers=True)
    conduct = follow(Conduct(), hot, 60, 100.0)
    assert follow(conduct, FREE, 60, 159.0).verdict == hot
    conduct = follow(conduct, hot, 60, 150.0)
    assert follow(conduct, FREE, 60, 209.0).verdict == hot
    assert follow(conduct, FREE, 60, 210.0).verdict == FREE
    ordered = follow(Conduct(), Verdict("by order"), 60, 100.0)
    assert follow(ordered, FREE, 60, 101.0).verdict == FREE


@given(duty=st.integers(1, 100), worked=st.floats(0.001, 1000))
def test_work_and_rest_make_the_duty(duty: int, worked: float) -> None:
    """Work is `duty` percent of work and rest together."""
    rest = rest_seconds(duty, worked)
    assert rest >= 0 and worked / (worked + rest) == pytest.approx(duty / 100)


def test_orders_are_files(tmp_path: Path) -> None:
    """Pause and resume leave and take a file; a file that makes no sense still is a pause."""
    assert orders.read(tmp_path) is None and not orders.resume(tmp_path)
    orders.pause(tmp_path, 60)
    order = orders.read(tmp_path)
    assert order is not None and order.until_seconds is not None
    (tmp_path / orders.FILE_NAME).write_text("nonsense")
    assert orders.read(tmp_path) == Order()
    assert orders.resume(tmp_path) and orders.read(tmp_path) is None


def test_one_peer_to_a_folder(tmp_path: Path) -> None:
    """A second peer in the same folder is told which process has it; the lock goes with its holder."""
    assert not orders.is_running(tmp_path)
    with orders.only_peer(tmp_path):
        assert orders.is_running(tmp_path)
        with pytest.raises(UsageError, match=rf"process {os.getpid()}\); .*--dir"), orders.only_peer(tmp_path):
            pass
    assert not orders.is_running(tmp_path)
    with orders.only_peer(tmp_path):
        pass


def test_pause_and_resume_commands(tmp_path: Path) -> None:
    """They say what they did and whether a peer runs; a folder without a peer is refused in one line."""
    wrong = run("pause", "--dir", tmp_path)
    assert wrong.code == 2 and "--dir" in wrong.err
    settings.ensure(tmp_path)
    with orders.only_peer(tmp_path):
        assert "after its present step" in run("pause", "--dir", tmp_path, "--minutes", "5").out
    assert orders.read(tmp_path) is not None
    assert "no peer runs there" in run("resume", "--dir", tmp_path).out
    assert orders.read(tmp_path) is None


class Sensors:
    """A machine whose facts the test sets."""

    def __init__(self) -> None:
        self.facts = Facts()

    def look(self) -> Facts:
        return self.facts


async def test_the_steward_follows_file_orders_and_sensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A changed file counts, a broken one is said and the old settings stay; orders and sensors change the verdict."""
    monkeypatch.setattr(steward, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(steward, "SENSOR_SECONDS", 0.01)
    said: list[str] = []
    applied: list[Settings] = []
    sensors = Sensors()
    looking = Steward(tmp_path, {"pause": {"calm_seconds": 0}}, sensors, said.append)

    async def until(condition: Any) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)

    watching = asyncio.create_task(looking.watch(applied.append, lambda: None))
    try:
        await until(lambda: applied)
        path = tmp_path / settings.FILE_NAME
        path.write_text("[network]\nupload_mbit = 2\n")
        await until(lambda: applied[-1].network.upload_mbit == 2)
        path.write_text("[network]\nupload = 2\n")
        await until(lambda: "stay in force" in said[-1])
        assert looking.settings.network.upload_mbit == 2
        orders.pause(tmp_path)
        await until(lambda: "order" in looking.verdict.reason)
        orders.resume(tmp_path)
        await until(lambda: not looking.verdict.reason)
        sensors.facts = HOT
        await until(lambda: "hot" in looking.verdict.reason)
        sensors.facts = Facts()
        await until(lambda: not looking.verdict.reason)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


class Nvml:
    """NVIDIA's library as a stand-in answers: this machine has no such card. Names and shapes as in pynvml."""

    class NVMLError(Exception):
        pass

    NVML_TEMPERATURE_GPU = 0

    def __init__(self, users: list[tuple[int, int]] | None, celsius: int = 70) -> None:
        self.users, self.degrees, self.asked = users, celsius, ""

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked = uuid
        return uuid

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:
        return self.degrees

    def nvmlDeviceGetProcessUtilization(self, handle: str, since: int) -> list[SimpleNamespace]:
        if self.users is None:
            raise self.NVMLError("Not Found")
        return [SimpleNamespace(pid=pid, smUtil=percent) for pid, percent in self.users]


@pytest.mark.parametrize(
    ("users", "other"),
    [(None, False), ([], False), ([(os.getpid(), 99)], False), ([(1, 5)], False), ([(os.getpid(), 60), (1, 40)], True)],
)
def test_others_on_the_gpu(users: list[tuple[int, int]] | None, other: bool) -> None:
    """A process that is not ours and takes more than a desktop does is somebody; our own work is nobody."""
    library = Nvml(users)
    gpu = machine.NvidiaGpu(library, "1234-5678")
    assert library.asked == "GPU-1234-5678"
    assert (gpu.other_user() is not None) == other
    assert gpu.celsius() == 70.0


def test_a_machine_without_sensors_is_no_obstacle() -> None:
    """Without NVIDIA's driver there is no GPU to ask; looking at this machine gives facts or None, and no error."""
    assert isinstance(machine.open_gpu(None), machine.NoGpu)
    assert isinstance(machine.open_gpu("GPU-of-nobody"), machine.NoGpu)
    facts = machine.Machine(machine.NoGpu()).look()
    assert facts.gpu_user is None and facts.gpu_celsius is None
    assert facts.cpu_celsius is None or 0 < facts.cpu_celsius < 150


@pytest.mark.parametrize(
    ("answer", "metered"),
    [
        ("100 (connected)\nyes (guessed)\n\n10 (unmanaged)\nunknown\n", True),
        ("100 (connected)\nno (guessed)\n", False),
        ("30 (disconnected)\nyes\n\n100 (connected)\nno\n", False),
        ("", None),
        ("100 (connected)\nunknown\n", None),
    ],
)
def test_what_network_manager_says(answer: str, metered: bool | None) -> None:
    """Only connected devices count, one metered is enough, and "unknown" is not known."""
    assert machine.says_metered(answer) is metered
