"""Faults in full length, with progress, a table at the end, and figures for docs/reliability.md.

    python -m tests.faults soak --kills 100            kills in random phases of random peers
    python -m tests.faults churn                       one of eight peers dies and one comes, every 20 s for 5 minutes
    python -m tests.faults phases                      a kill in every phase of a round
    python -m tests.faults bad-day                     a stopped peer, a slow link, a liar, a rotten disk, a full one
    python -m tests.faults clocks                      clocks ten minutes off
    python -m tests.faults coordinator-away            SIGKILL of the coordinator for three minutes
    python -m tests.faults partition                   2|2 for one minute
    python -m tests.faults slow-links                  all peers but one on 10 Mbit/s, contributions of 2 MB
    python -m tests.faults orders --examples 1000      the sequencer and the log through random orders of events
    python -m tests.faults run SCHEDULE.toml           a schedule of your own (tests/faults/schedule.py)

Real processes in network namespaces (root), or with --memory the in-memory swarm. --write docs puts the figures into
docs/reliability.md and, where there is one, the picture beside it. Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from rich.console import Console

from configs import RunSpec
from tests.faults import report, scenarios
from tests.faults.judgement import Judgement, judge
from tests.faults.memory import memory_world
from tests.faults.processes import LIGHT, Nursery, process_world
from tests.faults.runner import Happened, Performance
from tests.faults.schedule import Schedule, load
from tests.faults.world import World, fault_spec
from tests.netns import missing

COMMANDS = [
    "soak",
    "churn",
    "phases",
    "bad-day",
    "clocks",
    "coordinator-away",
    "partition",
    "slow-links",
    "orders",
    "run",
]
STEPS = 50
PICTURED = ("soak", "churn")


def main() -> None:
    options = _arguments().parse_args()
    console = Console(stderr=True)
    if options.command == "orders":
        _play(options.examples, console)
        return
    schedule = _schedule(options)
    folder = Path(options.dir or tempfile.mkdtemp(prefix="faults-"))
    if not options.memory and (why := missing()):
        sys.exit(f"{why}; or use --memory")
    console.print(f"{options.command}: {schedule.peers} peers, {len(schedule.faults)} faults, in {folder}")
    happened, found = asyncio.run(_perform(options, schedule, folder, console))
    figures = report.figures(options.command, folder, schedule, happened, found)
    report.show(console, figures, found)
    if options.write:
        command = " ".join(["python -m tests.faults", *_words(sys.argv[1:])])
        report.write(options.write, options.command, command, figures)
        if options.command in PICTURED:
            report.plot(options.write / f"faults-{options.command}.svg", happened)
    sys.exit(bool(found.wrong))


def _play(examples: int, console: Console) -> None:
    """The state machine of test_orders.py, for as long as one likes."""
    from hypothesis import HealthCheck, settings
    from hypothesis.stateful import run_state_machine_as_test

    from tests.faults.test_orders import AnyOrder

    long = settings(
        max_examples=examples, stateful_step_count=STEPS, deadline=None, suppress_health_check=list(HealthCheck)
    )
    with console.status(f"{examples} games of up to {STEPS} events"):
        run_state_machine_as_test(AnyOrder, settings=long)
    console.print(f"{examples} games of up to {STEPS} events: nothing is wrong")


async def _perform(
    options: argparse.Namespace, schedule: Schedule, folder: Path, console: Console
) -> tuple[Happened, Judgement]:
    with console.status("starting") as status:

        def progress(happened: Happened) -> None:
            status.update(report.line(schedule, happened))

        async with _world(options, schedule, folder) as world:
            happened = await Performance(world, schedule, progress).run()
        return happened, judge(folder, schedule, happened)


@contextlib.asynccontextmanager
async def _world(options: argparse.Namespace, schedule: Schedule, folder: Path) -> AsyncIterator[World]:
    spec = _spec(options.command)
    if options.memory:
        async with memory_world(folder, spec) as memory:
            yield memory
        return
    small_disks = {name for fault in schedule.faults if fault.what == "fill" for name in fault.whom}
    light = () if options.command == "slow-links" else LIGHT
    with Nursery() as nursery:
        async with process_world(nursery, folder, spec, small_disks, light) as world:
            yield world
            assert not (left := world.leaked()), f"processes that outlived their node: {left}"


def _spec(command: str) -> RunSpec:
    match command:
        case "slow-links":
            config = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4}
            return fault_spec(
                model={"architecture": "llama", "config": config},
                codec={"name": "fp16"},
                round={"target_tokens": 32768, "max_seconds": 60},
                timing={"first_deadline_seconds": 20},
            )
        case "soak" | "phases":  # deadlines of two seconds at least, as with the defaults
            return fault_spec(
                round={"target_tokens": 16384, "max_seconds": 20},
                timing={"heartbeat_seconds": 1.0, "silence_seconds": 6, "first_deadline_seconds": 6},
            )
        case "churn":  # rounds of some seconds, as long as a newcomer needs
            return fault_spec(round={"target_tokens": 32768, "max_seconds": 30})
        case "partition":  # leases outlast the cut, and nobody does more in it than the eight rounds that it may claim
            return fault_spec(round={"target_tokens": 16384, "max_seconds": 20}, timing={"lease_seconds": 90})
        case _:
            return fault_spec()


def _schedule(options: argparse.Namespace) -> Schedule:
    match options.command:
        case "soak":
            return scenarios.soak(options.kills, options.seed)
        case "churn":
            return scenarios.churn(options.seconds or 300.0)
        case "phases":
            return scenarios.kills_in_every_phase()
        case "bad-day":
            return scenarios.bad_day()
        case "clocks":
            return scenarios.wrong_clocks()
        case "coordinator-away":
            return scenarios.coordinator_away(options.seconds or 180.0)
        case "partition":
            return scenarios.partition(options.seconds or 60.0)
        case "slow-links":
            return scenarios.slow_links(options.seconds or 120.0)
        case _:
            if options.schedule is None:
                sys.exit("run: give the file of a schedule, see tests/faults/schedule.py")
            return load(options.schedule)


def _words(arguments: list[str]) -> list[str]:
    """What of the command line decides about the result."""
    words, skip = [], False
    for word in arguments:
        if not skip and word not in ("--write", "--dir"):
            words.append(word)
        skip = word in ("--write", "--dir")
    return words


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("schedule", type=Path, nargs="?", help="of `run`")
    parser.add_argument("--kills", type=int, default=100, help="of `soak`")
    parser.add_argument("--examples", type=int, default=1000, help="of `orders`")
    parser.add_argument("--seed", type=int, default=0, help="of `soak`")
    parser.add_argument("--seconds", type=float, default=0.0, help="how long the fault lasts, where that is a choice")
    parser.add_argument("--memory", action="store_true", help="the in-memory swarm instead of real processes")
    parser.add_argument("--dir", type=Path, help="where the nodes' folders are made; default: a new one in /tmp")
    parser.add_argument("--write", type=Path, metavar="DOCS", help="the folder of reliability.md")
    return parser


if __name__ == "__main__":
    main()
