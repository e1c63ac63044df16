"""The house rules that a machine can check: light imports, small files, tests that state their claim, honest pins."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGES = ("peer", "coordinator", "protos", "configs")
FILES = [
    path
    for folder in (*PACKAGES, "tests", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not re.search(r"_pb2(_grpc)?$", path.stem)
]
TESTS = [path for path in FILES if path.name.startswith("test_")]
# While tests are collected one thread runs: beside others parsing fails now and then, before Python 3.11.8 (gh-106905).
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

HEAVY = ("torch", "hivemind", "transformers", "datasets", "accelerate", "pyarrow", "sqlalchemy", "starlette")
# What decides, refuses or answers --help: imported by tools and tests that must not wait for torch.
LIGHT = (
    "configs",
    "protos.signing",
    "protos.swarm_pb2",
    "peer.errors",
    "peer.identity",
    "peer.ticket",
    "peer.rounds.ranges",
    "peer.rounds.leases",
    "peer.log.chain",
    "peer.rounds.sequencer",
    "peer.training.schedule",
    "peer.terminal.views",
    "peer.terminal.console",
    "peer.cli",
    "coordinator.cli",
)

PROBE = """
import importlib, sys
for module in sys.argv[1].split(","):
    importlib.import_module(module)
    heavy = [name for name in sys.argv[2].split(",") if name in sys.modules]
    assert not heavy, f"importing {module} imports {heavy}"
"""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_light_modules_are_light() -> None:
    """In a fresh process, what decides and what answers --help loads neither torch nor the swarm."""
    arguments = [sys.executable, "-c", PROBE, ",".join(LIGHT), ",".join(HEAVY)]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_are_small_and_introduced(path: Path) -> None:
    """No file that one cannot read in a sitting, none without a word on what it is."""
    text = path.read_text(encoding="utf-8")
    limit = 650 if path in TESTS else 450
    assert len(text.splitlines()) <= limit, f"{name(path)} has outgrown {limit} lines; split it by responsibility"
    if text.strip():
        assert ast.get_docstring(TREES[path]), f"{name(path)}: say at the top what this module is"


def claims_in(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield node


@pytest.mark.parametrize("path", TESTS, ids=name)
def test_a_test_states_its_claim(path: Path) -> None:
    """Every test has a docstring: the sentence that it proves."""
    silent = [test.name for test in claims_in(path) if not ast.get_docstring(test)]
    assert not silent, f"{name(path)}: which claims do these prove? {silent}"


def test_no_file_is_a_drawer() -> None:
    """No module is named after holding whatever fits nowhere else."""
    drawers = {"utils", "util", "common", "base", "helpers", "misc", "helper"}
    assert not [name(path) for path in FILES if path.stem in drawers]


def test_nothing_is_left_for_later() -> None:
    """No marker of unfinished work in the code: it is finished, or it is not there."""
    marker = re.compile(r"#.*\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b")
    assert not [name(path) for path in FILES if marker.search(path.read_text(encoding="utf-8"))]


def test_packages_are_typed() -> None:
    """Each package tells type checkers that its annotations can be relied on (PEP 561)."""
    assert all((ROOT / package / "py.typed").exists() for package in PACKAGES)


def test_constraints_fit_the_project() -> None:
    """Every dependency is pinned in constraints.txt to a version that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in [*project["dependencies"], *project["optional-dependencies"]["dev"]]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for requirement in wanted:
        assert requirement.name in pins, f"{requirement.name} is not in constraints.txt"
        assert pins[requirement.name] in requirement.specifier, f"{requirement.name}=={pins[requirement.name]}"


def test_make_without_a_target_explains_itself() -> None:
    """`make` names every target that a person may want, and builds nothing."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    output = subprocess.run(["make"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    for target in ("setup", "demo", "test", "lint", "types", "format", "protos", "clean"):
        assert re.search(rf"^  make {target} +\S", output, flags=re.M)
