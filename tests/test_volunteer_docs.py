"""docs/volunteer.md says what there is: every command, option, setting, check and metric, and no other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import typer

from peer.cli import app
from peer.doctor import examine
from peer.errors import UsageError
from peer.manners.settings import Settings
from peer.metrics import PeerCollector, exposed
from peer.terminal.views import JoinView, PeerView
from tests.commands import free_port

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "volunteer.md").read_text()
README = (ROOT / "README.md").read_text()
VIEW = JoinView(
    "demo",
    PeerView("anna", "training", 5, 10.0, 20, 8, 3.0, 1, 2),
    round=7,
    loss=3.1,
    swarm_peers=2,
    payload_bytes=100,
    uplink_bytes_per_second=1e6,
)


def rows_of(title: str) -> list[list[str]]:
    """The first two columns of the tables below a heading."""
    section = PAGE.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0].split("<!-- measured", 1)[0]
    return [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]


def names_in(title: str) -> set[str]:
    return {name for row in rows_of(title) for name in re.findall(r"`([\w.]+)`", row[0])}


def test_every_setting_is_documented_with_its_default() -> None:
    """The table has each key of settings.toml, nothing else, and the default that the code has."""
    known = {
        f"{section}.{key}": getattr(getattr(Settings(), section), key)
        for section, field in Settings.model_fields.items()
        for key in field.annotation.model_fields  # type: ignore[union-attr]
    }
    told = {row[0].strip("`"): row[1] for row in rows_of("Manners")}
    assert set(told) == set(known)
    for key, default in known.items():
        spelled = "[]" if default == () else f"{default:g}" if isinstance(default, float) else str(default)
        assert told[key] == (spelled.lower() if isinstance(default, bool) else spelled), key


def test_every_command_and_option_is_documented() -> None:
    """Each command of `commonweights` is in README or the page, and each option of join and doctor."""
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert f"commonweights {name}" in README + PAGE, name
        if name in ("join", "doctor", "pause", "resume"):
            for parameter in command.params:
                for option in parameter.opts:
                    if option.startswith("--") and option != "--help":
                        assert option in README + PAGE, f"{name} {option}"


def test_every_check_of_the_doctor_is_documented() -> None:
    """The table has the checks that a full examination makes."""
    source = Path(examine.__file__).read_text()
    made = set(re.findall(r'\("(\w+)", self\.', source)) | {"ticket", "settings", "swarm", "reachable", "bandwidth"}
    assert names_in("Doctor") == made


def test_every_metric_is_documented() -> None:
    """The table has the metrics that are exposed, and no other."""
    found = {sample.name for metric in PeerCollector(lambda: VIEW).collect() for sample in metric.samples}
    assert {f"commonweights_peer_{name}" for name in names_in("Prometheus")} == found


def test_the_notebook_calls_what_there_is() -> None:
    """Its cells are Python once the shell's lines are taken out, and those use commands and options that exist."""
    notebook = json.loads((ROOT / "docs/join.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        compile(re.sub(r"^( *)[!%].*$", r"\1pass", cell, flags=re.M), "cell", "exec")
    group = typer.main.get_command(app)
    called = re.findall(r"^ *!commonweights (.*)$", "\n".join(cells), flags=re.M)
    assert {line.split()[0] for line in called} == {"identity", "doctor", "join"}
    for line in called:
        command = group.commands[line.split()[0]]  # type: ignore[attr-defined]
        known = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[\w-]+", line)) <= known, line


def test_the_systemd_unit_is_sound(tmp_path: Path) -> None:
    """systemd takes the unit without a word, with a program that exists in place of the one in the home folder."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze")
    unit = tmp_path / "commonweights.service"
    text = (ROOT / "docs/commonweights.service").read_text()
    assert "ExecStart=%h/.local/bin/commonweights join " in text
    unit.write_text(text.replace("%h/.local/bin/commonweights", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and not done.stderr.strip(), done.stderr


def test_metrics_are_served_on_this_machine_only() -> None:
    """The port answers with the figures of the moment; a port in use is said with its option."""
    port = free_port()
    with exposed(port, lambda: VIEW):
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
        assert "commonweights_peer_round 7.0" in text and "commonweights_peer_trained_tokens_total 0.0" in text
        with pytest.raises(UsageError, match=f"--metrics-port {port}: "), exposed(port, lambda: None):
            pass
    with exposed(0, lambda: None):
        pass
