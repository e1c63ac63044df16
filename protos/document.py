"""docs/api.md out of coordinator.proto: `python -m protos.document > docs/api.md`, which `make protos` does.

Reads the file as it is written in this project: one declaration a line, comments before it or at its end.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

SOURCE = Path(__file__).parent / "coordinator.proto"

_OPEN = re.compile(r"^(service|message) (\w+) \{(\})?")
_CALL = re.compile(r"^  rpc (\w+)\((\w+)\) returns \((stream )?(\w+)\);")
_FIELD = re.compile(r"^  (?:(repeated) )?(\w+) (\w+) = \d+;\s*(?://\s*(.*))?$")

HEAD = """# The coordinator's API

<!-- Generated from protos/coordinator.proto by `make protos`; change the comments there. -->

gRPC on port 7070 (`serve --grpc-port`), in the clear or over TLS (`serve --tls`); with health checking and reflection:

```
grpcurl -plaintext my.host.name:7070 list
grpcurl -plaintext my.host.name:7070 commonweights.v1.Coordinator/GetStatus
grpcurl -cacert my-run/tls/certificate.pem -authority commonweights my.host.name:7070 list
```

In Python, from a ticket (`peer/client.py`; it checks TLS against the ticket):

```python
async with RunClient(Ticket.parse("cw1...")) as run:
    status = await run.status()
    async for row in run.ledger():
        print(row.name, row.credit_tokens)
    folder = await download(run, Path("checkpoints"))  # of peer/checkpoints/download.py: the newest, checked
```

A request has at most 64 KiB; whatever takes longer than a minute is given up. What a call is refused with:

| status | means |
|---|---|
| `INVALID_ARGUMENT` | the request makes no sense; the text names the field |
| `NOT_FOUND` | another run, or no such thing here |
| `FAILED_PRECONDITION` | no, and the text is the reason |
| `UNAUTHENTICATED` | for the organiser only |
| `RESOURCE_EXHAUSTED` | too large, or too many at once |
| `UNAVAILABLE` | the database does not answer; try again |
"""


@dataclass
class Declaration:
    kind: str  # "service" or "message"
    name: str
    comment: str
    lines: list[tuple[str, str, str]] = field(default_factory=list)  # (name, type or signature, comment)


def parse(source: str) -> tuple[str, list[Declaration]]:
    """The comment at the top, and what is declared."""
    top, _, rest = source.partition("syntax =")
    found: list[Declaration] = []
    comment: list[str] = []
    for line in rest.splitlines():
        if text := re.match(r"^\s*//\s?(.*)", line):
            comment.append(text[1])
            continue
        if opened := _OPEN.match(line):
            found.append(Declaration(opened[1], opened[2], " ".join(comment)))
        elif call := _CALL.match(line):
            signature = f"{call[2]} → {'stream of ' if call[3] else ''}{call[4]}"
            found[-1].lines.append((call[1], signature, " ".join(comment)))
        elif member := _FIELD.match(line):
            kind = f"{member[1]} {member[2]}" if member[1] else member[2]
            found[-1].lines.append((member[3], kind, " ".join([*comment, member[4] or ""]).strip()))
        comment = []
    return " ".join(re.findall(r"^//[ \t]?(.*)", top, flags=re.M)), found


def document(source: str) -> str:
    """The page, as Markdown."""
    top, declarations = parse(source)
    parts = [HEAD, top, ""]
    for item in declarations:
        parts += [f"## {item.name}" if item.kind == "service" else f"### {item.name}", ""]
        if item.comment:
            parts += [item.comment, ""]
        if item.kind == "service":
            parts += [f"- **{name}** ({kind}): {comment}" for name, kind, comment in item.lines]
        elif item.lines:
            parts += ["| field | type | |", "|---|---|---|"]
            parts += [f"| `{name}` | {kind} | {_cell(comment)} |" for name, kind, comment in item.lines]
        else:
            parts.append("No fields.")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(document(SOURCE.read_text()))
