"""What is written about API, commands and accounting is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import typer.main

from coordinator.cli import app
from peer.log.accounting import PENDING_ROUNDS
from protos import coordinator_pb2
from protos.document import SOURCE, document, parse

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
ACCOUNTING = (ROOT / "docs" / "accounting.md").read_text()


def test_the_page_of_the_api_is_the_proto() -> None:
    """docs/api.md is what `make protos` writes now, and the parser has missed no method and no field."""
    source = SOURCE.read_text()
    assert (ROOT / "docs" / "api.md").read_text() == document(source), "run `make protos`"
    _, found = parse(source)
    file = coordinator_pb2.DESCRIPTOR
    declared = {item.name: {name for name, _, _ in item.lines} for item in found}
    services = {name: set(service.methods_by_name) for name, service in file.services_by_name.items()}
    messages = {name: set(message.fields_by_name) for name, message in file.message_types_by_name.items()}
    assert declared == services | messages


def test_every_method_and_field_of_the_api_is_documented() -> None:
    """A comment at each of them; a field that needs none is one whose message is all it says."""
    _, found = parse(SOURCE.read_text())
    silent = [f"{item.name}.{name}" for item in found for name, kind, comment in item.lines if not comment]
    assert not silent


def test_every_command_of_the_organiser_is_documented() -> None:
    """Each command of `commonweights-coordinator`, and each option of `serve` and `ledger`, is in README or docs."""
    text = README + "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if name == "demo":  # which is `make demo`
            continue
        assert f"commonweights-coordinator {name}" in text, name
        for parameter in command.params if name in ("serve", "ledger") else ():
            for option in parameter.opts:
                if option.startswith("--") and option not in ("--help", "--json"):
                    assert option in text, f"{name} {option}"


def test_the_accounting_page_has_the_figures_of_the_code() -> None:
    """How long a contribution is pending is written down as it is."""
    assert re.search(rf"newest {PENDING_ROUNDS} rounds", ACCOUNTING)
