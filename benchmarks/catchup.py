"""What catching up costs: a peer that missed five rounds, against the whole state, over the real swarm on loopback.

    python -m benchmarks.catchup                                  the arithmetic, for every codec
    python -m benchmarks.catchup --parameters 100e6 --codec sparse/32 --contributors 4      measured
    python -m benchmarks.catchup --donor                          what serving a state costs a donor that trains

Measured: two donors hold log, payloads and a snapshot; a peer at round 1 of 6 comes to the head, and one that has
nothing. Payloads are of random vectors: their size does not depend on what was learned, except `ternary`'s a little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

MISSED = 5
CODECS = ("fp16", "dense8", "dense4", "lowbit2", "ternary", "sign", "sparse/8", "sparse/16", "sparse/32", "sparse/64")
SHARE = 0.3


def arithmetic() -> list[list[str]]:
    """Per codec: bits per parameter, and with how many contributors a round five missed rounds weigh at most `SHARE` of
    the whole state."""
    from peer.codecs import encode

    vector = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))
    rows = [["codec", "bits", "theta alone", "with outer momentum"]]
    for codec in CODECS:
        bits = 8 * len(encode(codec, vector)) / vector.numel()
        rows.append(
            [codec, f"{bits:.2f}", *(str(int(SHARE * state_bits / (MISSED * bits))) for state_bits in (32, 64))]
        )
    return rows


async def measured(parameters: int, codec: str, contributors: int, momentum: float) -> list[list[str]]:
    from peer.codecs import encode
    from peer.exchange.blobs import BlobStore
    from peer.exchange.exchange import Exchange
    from peer.identity import Identity
    from peer.log.chain import Log
    from peer.log.replica import Replica
    from peer.log.state import State
    from peer.swarm import HivemindSwarm
    from protos import log_pb2
    from protos.signing import sign
    from tests.in_memory import tiny_spec

    coordinator = Identity.new()
    spec = tiny_spec(codec={"name": codec}, outer={"learning_rate": 0.7, "momentum": momentum}, run={"rounds": 0})
    generator = torch.Generator().manual_seed(1)
    theta = torch.randn(parameters, generator=generator) * 0.02
    state = State.initial(theta.clone(), momentum > 0)
    genesis = log_pb2.Genesis(
        spec=spec.canonical_json(), manifest_hash=bytes(32), manifest_bytes=1, state_digest=state.digest(),
        parameters=parameters,
    )  # fmt: skip
    log = Log.start(sign(log_pb2.Record(time_seconds=1.0, genesis=genesis), coordinator.private_key))
    makers = sorted((Identity.new() for _ in range(contributors)), key=lambda maker: maker.peer_id.public_key)

    async with contextlib.AsyncExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        swarms: list[Any] = []
        for _ in range(4):
            bootstrap = [(swarm.peer_id, swarm.addresses) for swarm in swarms[:1]]
            swarm = await HivemindSwarm.create(Identity.new(), listen_host="127.0.0.1", bootstrap=bootstrap)
            swarms.append(await stack.enter_async_context(swarm))

        def replica(number: int, own: State, known: Log) -> Replica:
            store = BlobStore(root / str(number))
            donors = [swarm.peer_id for swarm in swarms[:2]]
            made = Replica(root / f"r{number}", known, own, Exchange(swarms[number], store), lambda: donors)
            made.serve(swarms[number])
            stack.callback(made.close)
            return made

        leader = replica(0, state, log)
        cursor = 0
        for _ in range(MISSED + 1):
            accepted = []
            for maker in makers:
                delta = torch.randn(parameters, generator=generator) * 0.001
                payload = await asyncio.to_thread(encode, codec, delta)
                cursor += 4
                contribution = log_pb2.Contribution(
                    run_id=log.run_id, round=log.head.round + 1, previous_hash=log.head.hash,
                    base_digest=leader.digest, consumed=[log_pb2.Range(start=cursor - 4, stop=cursor)],
                    tokens=4 * spec.data.sequence_length, inner_steps=1, mean_loss=5.0, codec=codec,
                    payload_hash=leader.blobs.put(payload), payload_bytes=len(payload), train_seconds=1.0,
                )  # fmt: skip
                norm = await asyncio.to_thread(norm_of, payload, parameters)
                accepted.append(log_pb2.Accepted(contribution=sign(contribution, maker.private_key), norm=norm))
            record = log_pb2.Record(
                run_id=log.run_id, round=log.head.round + 1, previous_hash=log.head.hash, time_seconds=time.time(),
                base_digest=leader.digest, accepted=accepted, data_cursor=cursor, deadline_seconds=30.0,
            )  # fmt: skip
            log.append(sign(record, coordinator.private_key))
            await leader.catch_up()
            if log.head.round == 1:
                kept = State(1, state.theta.clone(), None if state.momentum is None else state.momentum.clone())
                digest = leader.digest
        await leader.keep_snapshot(1)
        second = replica(1, State.empty(parameters, momentum > 0), log)
        second.state.round = -1
        await second.join(swarms[1], leader.digest)
        for entry in log.entries[1:]:
            await second.fetch_payloads(entry)
        rows = [["joins with", "MB", "of the state", "seconds", "of them waiting for bytes", "from each donor, MB"]]
        for number, own in ((2, kept), (3, None)):
            late = replica(number, own or State.empty(parameters, momentum > 0), log)
            late.state.round = 1 if own else -1
            late.digest = digest
            sent = [donor.exchange.bytes_sent for donor in (leader, second)]
            began = time.monotonic()
            await late.join(swarms[number], leader.digest)
            seconds = time.monotonic() - began
            assert late.digest == leader.digest
            came = late.exchange.bytes_received
            gave = [donor.exchange.bytes_sent - before for donor, before in zip((leader, second), sent, strict=True)]
            share = came / state.state_bytes
            rows.append([
                f"the state {MISSED} rounds ago" if own else "nothing", f"{came / 1e6:.1f}", f"{share:.1%}",
                f"{seconds:.1f}", "", ", ".join(f"{bytes_ / 1e6:.1f}" for bytes_ in gave),
            ])  # fmt: skip
    return [[*row[:4], row[5]] for row in rows]


def norm_of(payload: bytes, parameters: int) -> float:
    from peer.codecs import open_payload
    from peer.log import aggregate

    return aggregate.norm_of(open_payload(payload, parameters))


async def donor(megabytes: int, rates_mbit: list[float]) -> list[list[str]]:
    """Training steps per second in a donor, alone and while it serves; the taker has the other core to itself.

    On a machine that others use too, the processor time of serving tells more: what this process and its p2pd spend
    beside the training thread.
    """
    from peer.exchange.blobs import BlobStore
    from peer.exchange.exchange import Exchange
    from peer.identity import Identity
    from peer.swarm import HivemindSwarm

    cores = sorted(os.sched_getaffinity(0))
    rows = [["upload", "steps/s alone", "while serving", "slower by", "MB/s served", "of a core, beside training"]]
    with tempfile.TemporaryDirectory() as folder:
        os.sched_setaffinity(0, cores[:1])
        torch.set_num_threads(1)
        steps = Steps()
        async with await HivemindSwarm.create(Identity.new(), listen_host="127.0.0.1") as giving:
            exchange = Exchange(giving, BlobStore(Path(folder, "donor")))
            blobs = [exchange.store.put(os.urandom(4 << 20)) for _ in range(megabytes // 4)]
            for rate in rates_mbit:
                exchange.upload.set_rate(rate * 125_000 if rate else None)
                await asyncio.sleep(1)
                alone = await steps.rate(8)
                taker = await asyncio.create_subprocess_exec(
                    "taskset", "-c", str(cores[-1]), os.sys.executable, "-m", "benchmarks.catchup", "--take",  # type: ignore[attr-defined]
                    f"{giving.addresses[0]}/p2p/{giving.peer_id}", *(blob.hex() for blob in blobs),
                )  # fmt: skip
                while not exchange.bytes_sent:
                    await asyncio.sleep(0.1)
                await asyncio.sleep(2)
                before = exchange.bytes_sent
                began, spent = time.monotonic(), _cpu_seconds() - steps.cpu_seconds
                serving = await steps.rate(8)
                seconds = time.monotonic() - began
                speed = (exchange.bytes_sent - before) / seconds / 1e6
                beside = (_cpu_seconds() - steps.cpu_seconds - spent) / seconds
                taker.kill()
                await taker.wait()
                exchange.bytes_sent = 0
                rows.append([f"{rate:g} Mbit/s" if rate else "no limit", f"{alone:.2f}", f"{serving:.2f}",
                             f"{1 - serving / alone:.1%}", f"{speed:.1f}", f"{beside:.1%}"])  # fmt: skip
            await exchange.close()
        steps.stop()
    return rows


def _cpu_seconds() -> float:
    """Of this process and of the p2pd that it started."""
    children = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    ticks = 0
    for pid in children:
        if Path(f"/proc/{pid}/comm").read_text().strip() == "p2pd":
            ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]))
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


class Steps:
    """A small model trained in a thread, as a peer does."""

    def __init__(self) -> None:
        self.cpu_seconds = 0.0
        self._count = 0
        self._running = True
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def _train(self) -> None:
        model = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(8)))
        optimizer = torch.optim.AdamW(model.parameters())
        while self._running:
            optimizer.zero_grad()
            model(torch.randn(256, 512)).square().mean().backward()
            optimizer.step()
            self._count += 1
            self.cpu_seconds = time.thread_time()

    async def rate(self, seconds: float) -> float:
        before, began = self._count, time.monotonic()
        await asyncio.sleep(seconds)
        return (self._count - before) / (time.monotonic() - began)

    def stop(self) -> None:
        self._running = False
        self._thread.join()


async def take(address: str, *blobs: str) -> None:
    """Fetch the blobs again and again."""
    from peer.exchange.blobs import BlobStore
    from peer.exchange.exchange import Exchange
    from peer.identity import Identity
    from peer.swarm import HivemindSwarm
    from peer.swarm.multiaddr import split_peer

    bare, peer = split_peer(address)
    assert peer is not None
    with tempfile.TemporaryDirectory() as folder:
        async with await HivemindSwarm.create(
            Identity.new(), listen_host="127.0.0.1", bootstrap=[(peer, [bare])]
        ) as swarm:
            exchange = Exchange(swarm, BlobStore(folder))
            while True:
                gate = asyncio.Semaphore(4)

                async def one(blob: bytes, gate: asyncio.Semaphore = gate) -> None:
                    async with gate:
                        await exchange.fetch(blob, 4 << 20, [peer], deadline_seconds=600)
                    exchange.store.delete(blob)

                await asyncio.gather(*(one(bytes.fromhex(blob)) for blob in blobs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=0)
    parser.add_argument("--codec", choices=CODECS, default="sparse/32")
    parser.add_argument("--contributors", type=int, default=4)
    parser.add_argument("--momentum", type=float, default=0.0)
    parser.add_argument("--donor", action="store_true")
    parser.add_argument("--take", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.take:
        asyncio.run(take(*arguments.take))
    elif arguments.donor:
        show(asyncio.run(donor(64, [10.0, 100.0, 0.0])))
    elif arguments.parameters:
        show(
            asyncio.run(
                measured(int(arguments.parameters), arguments.codec, arguments.contributors, arguments.momentum)
            )
        )
    else:
        show(arithmetic())


def show(rows: list[list[str]]) -> None:
    for cells in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
