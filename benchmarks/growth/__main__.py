"""What a round costs as the model grows, and as the swarm does.

The first part does one round's maths with eight contributions at each size; the second runs whole rounds of real nodes,
from two peers to 64. What was measured stays in `--dir`; tables and picture are made of all that is there.

    python -m benchmarks.growth --dir runs/growth [--write docs]
    python -m benchmarks.growth --dir runs/growth --sizes "" --peers 64 --codec sparse/64 --scratch /dev/shm/growth
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import uvloop

from benchmarks.growth.maths import Maths, maths, maths_elsewhere
from benchmarks.growth.report import maths_table, plot, swarm_tables
from benchmarks.growth.swarm import Swarmed, swarmed
from benchmarks.tables import write_between_markers

SIZES = (1_000_000, 10_000_000, 100_000_000, 400_000_000)
PEERS = (2, 4, 8, 16, 32, 64)
CODECS = ("lowbit2", "sparse/16", "sparse/64")


def measured(arguments: argparse.Namespace) -> Iterator[Maths | Swarmed]:
    sizes, peers = ([int(each) for each in text.split(",") if each] for text in (arguments.sizes, arguments.peers))
    for size in sizes:
        for codec in arguments.codec or CODECS:
            yield maths_elsewhere(codec, size)
    for count in peers:
        for codec in arguments.codec or CODECS:
            folder = (arguments.scratch or arguments.dir) / f"{count}-peers"
            shutil.rmtree(folder, ignore_errors=True)
            yield uvloop.run(swarmed(folder, count, codec))  # as the programs do
            shutil.rmtree(folder, ignore_errors=True)


def read(path: Path) -> tuple[list[Maths], list[Swarmed]]:
    """The newest of each, by codec and size."""
    found: dict[tuple[str, str, int], Maths | Swarmed] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        fields = json.loads(line)
        row = Swarmed(**fields) if "peers" in fields else Maths(**fields)
        found[type(row).__name__, row.codec, row.peers if isinstance(row, Swarmed) else row.parameters] = row
    rows = [found[key] for key in sorted(found, key=lambda key: (CODECS.index(key[1]), key[2]))]
    return [row for row in rows if isinstance(row, Maths)], [row for row in rows if isinstance(row, Swarmed)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=Path("runs/growth"), help="where results are kept")
    parser.add_argument("--scratch", type=Path, help="where the nodes keep their files; default: --dir")
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="parameters; empty: none")
    parser.add_argument("--peers", default=",".join(map(str, PEERS)), help="empty: none")
    parser.add_argument("--codec", action="append", choices=CODECS, help="only this one; may be repeated")
    parser.add_argument("--write", type=Path, help="the folder of performance.md and growth.svg")
    parser.add_argument("--one", nargs=2, metavar=("CODEC", "PARAMETERS"), help="one size in this process, as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(dataclasses.asdict(maths(arguments.one[0], int(arguments.one[1])))))
        return
    arguments.dir.mkdir(parents=True, exist_ok=True)
    results = arguments.dir / "results.jsonl"
    for row in measured(arguments):
        print(row, file=sys.stderr, flush=True)
        with results.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
    by_size, by_peers = read(results)
    for name, text in (("maths", maths_table(by_size)), ("peers", swarm_tables(by_peers))):
        print(text)
        if arguments.write:
            write_between_markers(arguments.write / "performance.md", text, name)
    if arguments.write:
        plot(by_size, by_peers, arguments.write / "growth.svg")


if __name__ == "__main__":
    main()
