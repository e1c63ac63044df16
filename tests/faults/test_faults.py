"""Rounds are never fatal: the same schedules, the same judgement, in memory and among real processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import netns
from tests.faults import scenarios
from tests.faults.judgement import BREATH_SECONDS, judge
from tests.faults.memory import memory_world
from tests.faults.processes import Nursery, process_world
from tests.faults.runner import Performance
from tests.faults.schedule import Fault, Reaches, Schedule, load
from tests.faults.world import World, fault_spec

SCHEDULES = {
    "a kill in every phase": scenarios.kills_in_every_phase(),
    "a bad day": scenarios.bad_day(),
    "wrong clocks": scenarios.wrong_clocks(),
    "the coordinator is away": scenarios.coordinator_away(),
    "a partition": scenarios.partition(),
}
WHY_NOT = netns.missing()
pytestmark = [pytest.mark.timeout(300), pytest.mark.slow]
schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


async def lived_through(world: World, schedule: Schedule, breath_seconds: float) -> None:
    """Perform, and assert that nothing is wrong afterwards."""
    if why := [world.cannot[fault.what] for fault in schedule.faults if fault.what in world.cannot]:
        pytest.skip(why[0])
    happened = await Performance(world, schedule).run()
    found = judge(world.folder, schedule, happened, breath_seconds)
    assert not found.wrong, found
    assert found.rounds >= schedule.calm_rounds and len(happened.events) >= len(schedule.faults)


@pytest.mark.xdist_group("memory faults")
@schedules
async def test_in_memory(tmp_path: Path, schedule: Schedule) -> None:
    """Nobody ends, records come in time, one chain, equal states, every position merged once; no task is left over."""
    async with memory_world(tmp_path, fault_spec()) as world:
        # A node that starts again builds its model in the process of all the others, which wait for it meanwhile.
        await lived_through(world, schedule, 3 * BREATH_SECONDS)
    assert len(asyncio.all_tasks()) == 1


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as running:
        yield running


@pytest.mark.netns
@pytest.mark.xdist_group("process faults")
@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "")
@schedules
async def test_among_processes(tmp_path: Path, nursery: Nursery, schedule: Schedule) -> None:
    """The same, with SIGKILL, SIGSTOP, cut cables, a full disk and wrong clocks; no process is left on any host."""
    small_disks = {name for fault in schedule.faults if fault.what == "fill" for name in fault.whom}
    async with process_world(nursery, tmp_path, fault_spec(), small_disks) as world:
        await lived_through(world, schedule, 2 * BREATH_SECONDS)  # other tests run beside this one
        assert not world.leaked()


def test_a_schedule_can_be_written_as_toml(tmp_path: Path) -> None:
    """And what it does not understand is named."""
    path = tmp_path / "schedule.toml"
    path.write_text('peers = 2\n[[fault]]\nwhat = "kill"\nwhom = ["peer-1"]\nphase = "encoding"\nround = 3\n')
    assert load(path) == Schedule(2, (Fault("kill", ("peer-1",), Reaches("encoding", 3)),))
    for wrong in ('what = "hug"', 'what = "kill"\nat_seconds = 1\nphase = "training"', 'what = "kill"\nphase = "tea"'):
        path.write_text(f'peers = 2\n[[fault]]\nwhom = ["peer-1"]\n{wrong}\n')
        with pytest.raises(ValueError, match="one of|give either"):
            load(path)
