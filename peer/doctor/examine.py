"""All checks side by side, each with its own deadline: the whole takes well under a minute, whatever hangs."""

from __future__ import annotations

import asyncio
import importlib.metadata
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from peer.doctor import local, remote, verdicts
from peer.doctor.finding import Finding, fail, ok, skipped, warn
from peer.errors import CommonweightsError, ConfigError, Refused, UnreachableError, UsageError
from peer.manners import orders, settings
from peer.manners.decide import judge
from peer.manners.machine import Machine, open_gpu
from peer.manners.settings import Settings
from peer.ticket import Ticket

CHECK_SECONDS = 25.0
SWARM_SECONDS = 18.0  # then the two that need it, one after the other: below a minute together
DIAL_SECONDS = 10.0
SPEED_SECONDS = 20.0

NO_TICKET = "give the ticket to check this"


@dataclass(frozen=True)
class Options:
    folder: Path
    ticket: str = ""
    device: str = "auto"
    port: int | None = None  # None: the settings' own


async def examine(options: Options) -> list[Finding]:
    """Every check's finding, in the order in which they are best read."""
    ticket, findings = _ticket(options.ticket)
    wishes, about_settings = _settings(options.folder)
    patient = _Patient(options, ticket, wishes)
    try:
        return [*findings, about_settings, *await patient.checks()]
    finally:
        await patient.end()


def _ticket(text: str) -> tuple[Ticket | None, list[Finding]]:
    if not text:
        return None, [skipped("ticket", "none given: what concerns a run is left out")]
    try:
        ticket = Ticket.parse(text)
    except UsageError as error:
        return None, [fail("ticket", str(error), "copy the whole line again, or ask the run's organiser for it")]
    return ticket, [ok("ticket", f"for run {ticket.run_id.hex()[:16]} of {ticket.coordinator.short}")]


def _settings(folder: Path) -> tuple[Settings, Finding]:
    path = folder / settings.FILE_NAME
    try:
        found = settings.load(path)
    except ConfigError as error:
        return Settings(), fail("settings", str(error), "mend that line, or delete the file: it is written anew")
    return found, ok("settings", str(path) if path.exists() else "the defaults: there is no settings.toml yet")


class _Patient:
    """The checks, and what several of them need: asked once."""

    def __init__(self, options: Options, ticket: Ticket | None, wishes: Settings) -> None:
        self._options, self._ticket, self._settings = options, ticket, wishes
        self._answer = asyncio.create_task(self._ask())

    async def checks(self) -> list[Finding]:
        alone: list[tuple[str, Callable[[], Awaitable[Finding]]]] = [
            ("gpu", self.gpu),
            ("memory", self.memory),
            ("disk", self.disk),
            ("port", self.port),
            ("manners", self.manners),
            ("network", self.network),
            ("dns", self.dns),
            ("coordinator", self.coordinator),
            ("clock", self.clock),
        ]
        swarm = asyncio.create_task(self.swarm())
        found = await asyncio.gather(*(_within(CHECK_SECONDS, name, check()) for name, check in alone))
        return [*found, *await swarm]

    async def end(self) -> None:
        self._answer.cancel()
        await asyncio.gather(self._answer, return_exceptions=True)

    @property
    def _port(self) -> int:
        return self._settings.network.port if self._options.port is None else self._options.port

    async def _ask(self) -> remote.Answer | None:
        return await remote.ask_coordinator(self._ticket) if self._ticket else None

    async def _answered(self) -> remote.Answer | None:
        return await asyncio.shield(self._answer)

    async def _model(self) -> Any:
        answer = await self._answered()
        if answer is None or answer.log is None:
            return None
        return await asyncio.to_thread(remote.model_of, answer.log)

    async def _device(self) -> Any:
        answer = await self._answered()
        wanted = answer.log.spec.train.precision if answer and answer.log else "auto"
        return await asyncio.to_thread(local.device, self._options.device, wanted, self._settings)

    # --- this machine -----------------------------------------------------------------------------------------------

    async def gpu(self) -> Finding:
        torch = await asyncio.to_thread(local.torch_build)
        drivers = await asyncio.to_thread(local.drivers)
        return verdicts.about_gpu(torch, drivers, await self._device())

    async def memory(self) -> Finding:
        model, device = await self._model(), await self._device()
        if device.problem:
            return skipped("memory", "no device")
        if model is None:
            return skipped(
                "memory", NO_TICKET if self._ticket is None else "the coordinator did not say what the run is"
            )
        return verdicts.about_memory(model, device)

    async def disk(self) -> Finding:
        facts = await asyncio.to_thread(local.disk, self._options.folder)
        return verdicts.about_disk(facts, await self._model(), self._settings.disk.cache_bytes)

    async def port(self) -> Finding:
        number = self._port
        if number and orders.is_running(self._options.folder):
            return ok("port", f"{number}: the peer of this folder runs, and has it")
        return verdicts.about_port(await asyncio.to_thread(local.port, number))

    async def manners(self) -> Finding:
        facts = await asyncio.to_thread(Machine(open_gpu(None)).look)
        order = orders.read(self._options.folder)
        return verdicts.about_manners(judge(self._settings, facts, order, datetime.now()).reason)

    # --- the way to the swarm ---------------------------------------------------------------------------------------

    async def network(self) -> Finding:
        return verdicts.about_network(local.has_route(socket.AF_INET), local.has_route(socket.AF_INET6))

    async def dns(self) -> Finding:
        if self._ticket is None:
            return skipped("dns", NO_TICKET)
        return verdicts.about_names(await remote.look_up(self._ticket))

    async def coordinator(self) -> Finding:
        answer = await self._answered()
        if answer is None:
            return skipped("coordinator", NO_TICKET)
        return verdicts.about_api(answer.api, importlib.metadata.version("commonweights"))

    async def clock(self) -> Finding:
        answer = await self._answered()
        return verdicts.about_clock(answer.api.clock_ahead_seconds if answer else None)

    async def swarm(self) -> list[Finding]:
        """One visit for all that needs one."""
        names = ("swarm", "reachable", "bandwidth")
        if self._ticket is None:
            return [skipped(name, NO_TICKET) for name in names]
        taken = orders.is_running(self._options.folder) or (await asyncio.to_thread(local.port, self._port)).in_use_by
        port = 0 if taken else self._port
        async with remote.visiting(self._ticket, port, SWARM_SECONDS) as visit:
            joined = verdicts.about_bootstrap(visit.found)
            if visit.swarm is None:
                return [joined, *(skipped(name, "not in the swarm") for name in names[1:])]
            reachable = await _within(DIAL_SECONDS, "reachable", self._reachable(visit.swarm))
            bandwidth = await _within(SPEED_SECONDS, "bandwidth", self._speed(visit.swarm))
            return [joined, reachable, bandwidth]

    async def _reachable(self, swarm: Any) -> Finding:
        return verdicts.about_reachability(await swarm.check_reachability(), self._port)

    async def _speed(self, swarm: Any) -> Finding:
        assert self._ticket is not None
        try:
            found = await remote.speed(swarm, self._ticket)
        except (UnreachableError, Refused) as error:
            return warn("bandwidth", f"could not be measured: {error}", "run the doctor again in a minute")
        return verdicts.about_speed(found, await self._model(), self._settings.network.upload_bytes_per_second)


async def _within(seconds: float, name: str, check: Awaitable[Finding]) -> Finding:
    """A check that hangs or fails is a finding too."""
    try:
        async with asyncio.timeout(seconds):
            return await check
    except TimeoutError:
        return warn(name, f"no result within {seconds:.0f} s", "run the doctor again; if it stays so, tell us")
    except CommonweightsError as error:
        return warn(name, str(error), "run the doctor again; if it stays so, tell us")
