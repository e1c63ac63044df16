"""The picture of docs/volunteer.md: `commonweights join` in a real terminal, 96 by 26, after some rounds.

    python -m benchmarks.join_picture [--rounds 12] [--write docs/join.svg]

Everything is real: the demo's run with a coordinator and another peer on this machine, and tmux as the terminal; the
picture is what tmux has on its screen. Needs tmux.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.commands import free_port, journal, running, until

ROOT = Path(__file__).parent.parent
WIDTH, HEIGHT = 96, 26


class Terminal:
    """A terminal with one program in it."""

    def __init__(self, socket: Path) -> None:
        self._tmux = ("tmux", "-S", str(socket), "-f", "/dev/null")

    def start(self, *command: object) -> None:
        size = ("-x", str(WIDTH), "-y", str(HEIGHT))
        shell = f"cd {shlex.quote(str(ROOT))} && TERM=tmux-256color exec {shlex.join(map(str, command))}"
        self._run("-u", "new-session", "-d", *size, shell)

    def screen(self) -> str:
        """What it shows, with the escape codes of its colours."""
        return self._run("capture-pane", "-e", "-p")

    def end(self) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            self._run("kill-server")

    def _run(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], check=True, capture_output=True, text=True, timeout=20).stdout


@contextlib.contextmanager
def terminal(folder: Path) -> Iterator[Terminal]:
    found = Terminal(folder / "tmux")
    try:
        yield found
    finally:
        found.end()


def captured(folder: Path, rounds: int) -> str:
    """The screen of a peer that has contributed to so many rounds, while it trains."""
    config = folder / "demo.toml"
    config.write_text((ROOT / "configs/demo.toml").read_text().replace("rounds = 13 ", "rounds = 40 "))
    serve = ("serve", config, "--dir", folder / "run", "--host", "127.0.0.1", "--grpc-port", free_port())
    with running(*serve, "--swarm-port", free_port(), program="coordinator.cli"), terminal(folder) as screen:
        ticket, peer = folder / "run" / "ticket.txt", folder / "ada"
        until(ticket.is_file, "the ticket is written")
        with running("join", ticket, "--dir", folder / "noether", "--name", "noether", "--always"):
            screen.start(sys.executable, "-m", "peer.cli", "join", ticket, "--dir", peer, "--name", "ada", "--always")
            until(
                lambda: any(line.get("rounds_contributed", 0) >= rounds for line in journal(peer)),
                f"{rounds} rounds", 60.0 * rounds,
            )  # fmt: skip
            until(lambda: "training round" in screen.screen(), "it trains again")
            return screen.screen()


def picture(screen: str) -> str:
    """SVG of a terminal's screen."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(screen.rstrip()), no_wrap=True)
    return console.export_svg(title="commonweights join", unique_id="join")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="after which the picture is taken")
    parser.add_argument("--write", type=Path, help="the file of the picture")
    arguments = parser.parse_args()
    if shutil.which("tmux") is None:
        sys.exit("there is no tmux here; apt-get install tmux")
    with tempfile.TemporaryDirectory() as folder:
        screen = captured(Path(folder), arguments.rounds)
    print(screen)
    if arguments.write:
        arguments.write.write_text(picture(screen))


if __name__ == "__main__":
    main()
