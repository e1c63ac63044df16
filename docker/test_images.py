"""The images, built and run for real: `make test-images`. Takes minutes, so it stands beside the suite, not in it.

Needs a Docker engine and compose. Where none answers and this is root with dockerd installed, one is started for the
test. Where the base image cannot be pulled, a stand-in is made of Debian's packages (debootstrap), under the same name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
BASE = "python:3.11-slim-bookworm"
PAGE = "http://127.0.0.1:7071"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def sh(*command: str, seconds: float = 600, **environment: str) -> str:
    """stdout of a command; fails with its stderr."""
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=seconds
    )
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def works(*command: str, seconds: float = 60) -> bool:
    """Whether a command succeeds, in time."""
    try:
        return subprocess.run(command, capture_output=True, timeout=seconds).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def until(condition: Callable[[], bool], what: str, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(1.0)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Docker engine that answers, for as long as the tests run."""
    if not shutil.which("docker"):
        pytest.skip("no docker command; apt-get install docker.io docker-compose")
    if works("docker", "version"):
        yield
        return
    if os.geteuid() != 0 or not shutil.which("dockerd"):
        pytest.skip("no Docker engine answers, and only root with dockerd installed could start one")
    folder = tmp_path_factory.mktemp("docker")
    os.environ["DOCKER_HOST"] = f"unix://{folder}/socket"
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen(
            [
                "dockerd",
                *("--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"),
                *("--pidfile", f"{folder}/pid", "-H", f"unix://{folder}/socket"),
            ],
            stdout=log,
            stderr=log,
        )
    try:
        until(lambda: daemon.poll() is not None or works("docker", "version"), "the engine answers", 60)
        if daemon.poll() is not None:
            pytest.skip(f"dockerd does not run here: {(folder / 'log').read_text()[-300:]}")
        if (driver := sh("docker", "info", "-f", "{{.Driver}}").strip()) == "vfs":
            pytest.skip(f"dockerd has no better storage here than {driver}: images would take tens of GB")
        yield
    finally:
        del os.environ["DOCKER_HOST"]
        daemon.terminate()
        daemon.wait(60)
        works("umount", str(folder / "exec/netns/default"))  # it leaves that mounted
        shutil.rmtree(folder, ignore_errors=True)  # gigabytes, which pytest would keep for a while


@pytest.fixture(scope="module")
def build(engine: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment for compose: how images are built here."""
    if not (works("docker", "image", "inspect", BASE) or works("docker", "pull", "-q", BASE, seconds=300)):
        make_stand_in(tmp_path_factory.mktemp("base"))
    if not works("docker", "run", "--rm", BASE, "true"):
        pytest.skip("the engine answers, but starts no container here")
    environment = {}
    if works("docker", "run", "--rm", BASE, "test", "-e", "/stand-in"):
        environment["BUILD_NETWORK"] = "host"  # it reaches the package index as this machine does
    if works("docker", "run", "--rm", BASE, "test", "-e", "/opt/wheels"):
        environment["TORCH_INDEX"] = ""
    return environment


def make_stand_in(folder: Path) -> None:
    """What the Dockerfiles need of the base image: Debian with Python, and this machine's certificates and wheels."""
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        pytest.skip(f"{BASE} cannot be pulled, and only root with debootstrap installed could make a stand-in")
    root = folder / "root"
    sh("debootstrap", "--variant=minbase", "--include=ca-certificates,python3,python3-venv", "bookworm", str(root))
    shutil.copy(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
    # Wheels that no index has: torch for CPUs, on a machine that reaches PyPI alone.
    links = re.search(r"find-links='([^' ]+)'", sh(sys.executable, "-m", "pip", "config", "list"))
    if links and Path(links[1]).is_dir():
        shutil.copytree(links[1], root / "opt/wheels")
    (root / "stand-in").touch()
    archive = folder / "base.tar"
    sh("tar", "-C", str(root), "-cf", str(archive), ".")
    settings = f"ENV PIP_FIND_LINKS=/opt/wheels PIP_CERT={CERTIFICATES} SSL_CERT_FILE={CERTIFICATES}"
    sh("docker", "import", "-c", settings, str(archive), BASE)
    shutil.rmtree(folder)


class Compose:
    """The swarm of docker/compose.yml, in a project of its own."""

    def __init__(self, environment: dict[str, str], *files: Path) -> None:
        self.environment = environment
        self.command = ["docker", "compose"] if works("docker", "compose", "version") else ["docker-compose"]
        self.command += ["-p", "commonweights-test", *(word for file in files for word in ("-f", str(file)))]

    def __call__(self, *words: str, seconds: float = 600) -> str:
        return sh(*self.command, *words, seconds=seconds, **self.environment)

    def container(self, service: str) -> str:
        return self("ps", "-q", service).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        (found,) = json.loads(sh("docker", "inspect", self.container(service)))
        assert isinstance(found, dict)
        return found

    def health(self, service: str) -> str:
        return str(self.inspect(service)["State"]["Health"]["Status"])

    def peer_id(self, service: str) -> str:
        find = "commonweights identity show --dir $(dirname $(find /data -name identity.key))"
        return sh("docker", "exec", self.container(service), "sh", "-c", find).strip()


@pytest.fixture(scope="module")
def swarm(build: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    if not (works("docker", "compose", "version") or shutil.which("docker-compose")):
        pytest.skip("no docker compose; apt-get install docker-compose")
    spec = (ROOT / "configs/demo.toml").read_text()
    spec_path = tmp_path_factory.mktemp("spec") / "run.toml"
    spec_path.write_text(spec.replace("rounds = 13 ", "rounds = 0 "))  # to the end of the test
    spec_path.parent.chmod(0o755)
    compose = Compose({**build, "RUN_SPEC": str(spec_path)}, ROOT / "docker/compose.yml")
    try:
        compose("build", "coordinator", "peer-1", seconds=1500)
        compose("up", "-d", "--no-build")
        yield compose
    finally:
        compose("down", "-v", "--timeout", "15")


def page(path: str) -> str:
    with urllib.request.urlopen(PAGE + path, timeout=10) as answer:
        return str(answer.read().decode())


def rounds_done() -> int:
    return int(json.loads(page("/api/now"))["rounds_done"])


def credit() -> dict[str, int]:
    """Accepted tokens by peer id, of all that ever contributed."""
    return {peer["id"]: peer["credit_tokens"] for peer in json.loads(page("/api/leaderboard"))["peers"]}


def test_compose_brings_up_a_swarm_that_trains(swarm: Compose) -> None:
    """`docker compose up`: the coordinator and both peers become healthy, at least three rounds are committed, and the
    page is there."""
    until(lambda: rounds_done() >= 3, "three rounds", 300)
    until(lambda: all(swarm.health(it) == "healthy" for it in ("coordinator", "peer-1", "peer-2")), "health", 120)
    assert "<title>" in page("/") and page("/ticket").startswith("cw1")
    assert len([tokens for tokens in credit().values() if tokens > 0]) == 2


def test_a_killed_peer_keeps_identity_and_credit(swarm: Compose) -> None:
    """A peer's container, SIGKILLed and started again, is the same peer, with the same credit, and earns more."""
    peer_id = swarm.peer_id("peer-1")
    until(lambda: credit().get(peer_id, 0) > 0, "peer-1 has credit", 120)
    before = credit()[peer_id]
    swarm("kill", "-s", "SIGKILL", "peer-1")
    swarm("up", "-d", "--no-build", "peer-1")
    assert swarm.peer_id("peer-1") == peer_id
    until(lambda: credit().get(peer_id, 0) > before, "peer-1 earns again", 180)


def test_health_tells_a_peer_that_is_cut_off(swarm: Compose) -> None:
    """Unhealthy within a minute or so of losing the network, healthy again after it is back: alive is not enough."""
    container = swarm.container("peer-2")
    until(lambda: swarm.health("peer-2") == "healthy", "peer-2 is healthy", 120)
    (network,) = swarm.inspect("peer-2")["NetworkSettings"]["Networks"]
    sh("docker", "network", "disconnect", network, container)
    try:
        until(lambda: swarm.health("peer-2") == "unhealthy", "peer-2 is unhealthy", 150)
        assert swarm.inspect("peer-2")["State"]["Running"], "it waits for the network to come back"
    finally:
        sh("docker", "network", "connect", network, container)
    until(lambda: swarm.health("peer-2") == "healthy", "peer-2 is healthy again", 180)


def test_containers_have_no_privileges(swarm: Compose) -> None:
    """Not root, no capabilities, no writable root file system."""
    for service in ("coordinator", "peer-1"):
        container = swarm.container(service)
        assert sh("docker", "exec", container, "id", "-u").strip() == "10001"
        capabilities = sh("docker", "exec", container, "grep", "CapEff", "/proc/1/status").split()[1]
        assert int(capabilities, 16) == 0
        assert not works("docker", "exec", container, "touch", "/opt/written")


def test_images_are_as_small_as_told(swarm: Compose) -> None:
    """What the peer's image adds to its base is as README says; the coordinator's shares all of it but our own code."""
    told = re.search(r"# ([\d.]+) GB beside its base", (ROOT / "README.md").read_text())
    images = ("commonweights/peer", "commonweights/coordinator")
    peer, coordinator, base = (json.loads(sh("docker", "image", "inspect", it))[0] for it in (*images, BASE))
    assert told and (peer["Size"] - base["Size"]) / 1e9 == pytest.approx(float(told[1]), rel=0.1)
    assert peer["RootFS"]["Layers"][:-1] == coordinator["RootFS"]["Layers"][:-1]


def test_every_profile_is_understood(swarm: Compose) -> None:
    """Compose takes each profile, and the file for one peer, which asks for a ticket."""
    for profile, service in (("gpu", "peer-gpu"), ("postgres", "postgres"), ("monitoring", "grafana")):
        assert service in swarm("--profile", profile, "config", "--services").split()
    single = Compose({"TICKET": "cw1"}, ROOT / "docker/peer.yml")
    assert single("config", "--services").split() == ["peer"]


def test_stop_is_clean(swarm: Compose) -> None:
    """`docker compose stop` ends a peer within its ten seconds: SIGTERM arrives and is obeyed, nothing is killed."""
    container = swarm.container("peer-1")
    started = time.monotonic()
    swarm("stop", "--timeout", "30", "peer-1")
    took = time.monotonic() - started
    (found,) = json.loads(sh("docker", "inspect", container))
    assert found["State"]["ExitCode"] != 137, "it had to be killed"
    assert took < 20
