"""commonweights: take part in a run, look at one, check one."""

from __future__ import annotations

import getpass
import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from peer.commands import INTERRUPTED, as_a_command, print_json, set_up_logging

app = typer.Typer(
    help="Take part in a run: join it with a ticket, look at it, check its log.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
identity_app = typer.Typer(help="The key that is you: credit belongs to it.", no_args_is_help=True)
app.add_typer(identity_app, name="identity")

HOME = Path("~/.commonweights").expanduser()

TicketArgument = Annotated[str, typer.Argument(help="The ticket; or a file or URL (PAGE/ticket) that holds it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]
IdentityDirOption = Annotated[Path, typer.Option("--dir", help="Folder of the identity.")]


@app.command()
def join(
    ticket: TicketArgument,
    folder: Annotated[
        Path | None, typer.Option("--dir", help="Folder for identity, log and data; ~/.commonweights/RUN if not given.")
    ] = None,
    name: Annotated[str, typer.Option(help="What others see beside your contributions.")] = "",
    team: Annotated[str, typer.Option(help="Team or organization that your credit is shown under.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0 or mps.")] = "auto",
    processes: Annotated[
        int, typer.Option(min=0, max=64, help="Local GPUs (or CPU processes) that are one peer; 0: every GPU.")
    ] = 1,
    upload_mbit: Annotated[float | None, typer.Option(min=0.1, help="Limit of the upload, in Mbit/s.")] = None,
    download_mbit: Annotated[float | None, typer.Option(min=0.1, help="Limit of the download, in Mbit/s.")] = None,
    duty_percent: Annotated[
        int | None, typer.Option(min=1, max=100, help="Compute for so much of the time, rest in between.")
    ] = None,
    hours: Annotated[
        list[str] | None, typer.Option(help='Train only then: "22:00-07:00", "Sat-Sun 00:00-24:00"; may be repeated.')
    ] = None,
    always: Annotated[bool, typer.Option("--always", help="Never pause by itself, and give way to nobody.")] = False,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Listen on this TCP port for other peers.")] = None,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Figures for Prometheus on this port of this machine.")
    ] = None,
    data: Annotated[
        str, typer.Option(help="Train on these files of yours, which stay here; a file, folder or glob.")
    ] = "",
    data_name: Annotated[str, typer.Option(help="What the records call that data.")] = "private",
    rounds: Annotated[int, typer.Option(min=0, help="Contribute to so many rounds, then leave; 0: to the end.")] = 0,
    invite: Annotated[
        str, typer.Option(envvar="COMMONWEIGHTS_INVITE", help="Invitation to an invite-only run; once is enough.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Join a run and train until it is finished. Ctrl-C leaves cleanly; the same command again goes on.

    How it treats this machine stands in settings.toml in the run's folder; options go before it.
    """
    from peer.manners.settings import overrides
    from peer.terminal.console import Console
    from peer.terminal.journal import JsonLines
    from peer.ticket import Ticket

    parsed = Ticket.parse(ticket)
    home, folder = (None, folder) if folder else (HOME, HOME / parsed.run_id.hex()[:16])
    wishes = overrides(
        always=always,
        network_upload_mbit=upload_mbit,
        network_download_mbit=download_mbit,
        network_port=port,
        device_duty_percent=duty_percent,
        schedule_hours=hours or None,
        metrics_port=metrics_port,
    )
    with Console() as console:
        set_up_logging(folder / "peer.jsonl", console.log_handler(), JsonLines())
        console.event(f"joining run {parsed.run_id.hex()[:16]}; loading")
        from peer.join import JoinOptions
        from peer.participate import participate
        from peer.runner import run

        options = JoinOptions(
            folder,
            name,
            team,
            device,
            wishes,
            processes,
            rounds,
            private_data=data,
            private_data_name=data_name,
            home=home,
            invite=invite,
        )
        report = run(lambda stop: participate(parsed, options, stop, console))
        if report is None:
            raise typer.Exit(INTERRUPTED)
        if as_json:
            print_json(vars(report))


@app.command()
def status(
    ticket: TicketArgument,
    peer: Annotated[str, typer.Option("--peer", help="Of this peer id: its credit, and why it is not more.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Where a run stands, or one peer in it."""
    import asyncio

    from peer.status import as_dict, fetch, fetch_peer, peer_as_dict, print_peer, print_status
    from peer.ticket import Ticket

    if peer:
        from peer.identity import PeerId

        one = asyncio.run(fetch_peer(Ticket.parse(ticket), PeerId.parse(peer)))
        if as_json:
            print_json(peer_as_dict(one))
        else:
            print_peer(one)
        return
    found = asyncio.run(fetch(Ticket.parse(ticket)))
    if as_json:
        print_json(as_dict(found))
    else:
        print_status(found)


@app.command()
def receipt(
    ticket: TicketArgument,
    peer: Annotated[str, typer.Argument(help="Peer id; see `commonweights identity show`.")],
    round_: Annotated[int, typer.Option("--round", min=0, help="Of this round; 0: of the newest contribution.")] = 0,
    out: Annotated[Path | None, typer.Option(help="File to write; receipt-PEER-ROUND.bin if not given.")] = None,
) -> None:
    """Fetch the proof that a contribution was accepted; `verify --receipt` checks it anywhere, offline."""
    from peer.receipts import fetch_receipt
    from peer.ticket import Ticket

    typer.echo(fetch_receipt(Ticket.parse(ticket), peer, round_, out))


@app.command()
def download(
    ticket: TicketArgument,
    folder: Annotated[Path, typer.Option("--dir", help="The checkpoint comes into a folder below this one.")] = Path(),
    round_: Annotated[int, typer.Option("--round", min=0, help="Of this round; 0: the newest.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Fetch a checkpoint from the coordinator and check it; the same command goes on where it broke off."""
    from peer.checkpoints.download import download_with_progress
    from peer.ticket import Ticket

    found = download_with_progress(Ticket.parse(ticket), folder, round_)
    if as_json:
        print_json({"checkpoint": str(found)})
    else:
        typer.echo(found)


@app.command()
def verify(
    target: Annotated[
        str, typer.Argument(metavar="DIR", help="Folder of a demo, serve or join; or a checkpoint's folder or URL.")
    ] = "",
    receipt: Annotated[Path | None, typer.Option(help="A receipt to check instead of a folder.")] = None,
    run: Annotated[
        str,
        typer.Option(
            help="What to check against: of a checkpoint, the run's ticket or a folder of it; of a receipt, its ticket "
            "or id. Else each proves its own run."
        ),
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Replay a run's log: signatures, chain, weights, credit. Exit code 3 if anything is not as it was signed.

    Of a checkpoint: files, signature, weights, and its place in the log."""
    if receipt is not None:
        from peer.receipts import show_statement, verify_receipt

        statement = verify_receipt(receipt, run)
        if as_json:
            print_json({"ok": True, **vars(statement)})
        else:
            show_statement(statement, run)
        return
    from peer.errors import UsageError
    from peer.verification import is_checkpoint, show_verdict, verify_with_progress

    if not target:
        raise UsageError("verify: give a folder to replay, a checkpoint, or --receipt FILE")
    if is_checkpoint(target):
        _verify_checkpoint(target, run, as_json)
        return
    verdict = verify_with_progress(Path(target))
    if as_json:
        keys = ("ok", "run_id", "rounds", "contributions", "state_digest", "credit", "errors")
        print_json({key: getattr(verdict, key) for key in keys})
    else:
        show_verdict(verdict)
    if not verdict.ok:
        sys.exit(3)


@app.command()
def doctor(
    ticket: Annotated[str, typer.Argument(help="The ticket, or a file that holds it; none: only this machine.")] = "",
    folder: Annotated[Path | None, typer.Option("--dir", help="Folder of `join`, with its settings.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:0 or mps.")] = "auto",
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="The TCP port that `join` is to listen on.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Is all well for taking part? Every problem with its cure, in less than a minute; exit code 1 if there is one."""
    import time

    from peer.doctor.show import as_dict, is_well, show
    from peer.runner import run

    started = time.monotonic()
    set_up_logging(None, logging.NullHandler())  # what concerns the person is in the findings
    if not as_json:
        sys.stderr.write("looking at this machine and the way to the swarm; less than a minute\n")
    from peer.doctor.examine import Options, examine

    options = Options(folder or _folder_of(ticket), ticket, device, port)
    findings = run(lambda stop: examine(options))
    if findings is None:
        raise typer.Exit(INTERRUPTED)
    if as_json:
        print_json(as_dict(findings, time.monotonic() - started))
    else:
        show(findings)
    if not is_well(findings):
        raise typer.Exit(1)


def _folder_of(ticket: str) -> Path:
    """Where `join` would put the run of this ticket; a wrong ticket is a finding of the doctor's."""
    from peer.errors import UsageError
    from peer.ticket import Ticket

    try:
        return HOME / Ticket.parse(ticket).run_id.hex()[:16]
    except UsageError:
        return HOME


FolderOption = Annotated[
    Path | None, typer.Option("--dir", help="Folder of the peer; if not given, all runs below ~/.commonweights.")
]


@app.command()
def pause(
    folder: FolderOption = None,
    minutes: Annotated[float | None, typer.Option(min=0.1, help="For so long; if not given, until `resume`.")] = None,
) -> None:
    """Stop training, now and after restarts: the peer hands in what it has, frees the processor and stays in touch."""
    from peer.manners import orders

    for place in _peer_folders(folder):
        orders.pause(place, minutes * 60 if minutes else None)
        running = "it stops after its present step" if orders.is_running(place) else "no peer runs there now"
        typer.echo(f"{place}: paused; {running}")


@app.command()
def resume(folder: FolderOption = None) -> None:
    """End a pause."""
    from peer.manners import orders

    for place in _peer_folders(folder):
        was = "training goes on" if orders.resume(place) else "it was not paused"
        typer.echo(f"{place}: {was}" + ("" if orders.is_running(place) else " (no peer runs there now)"))


@app.command()
def health(folder: FolderOption = None, as_json: JsonOption = False) -> None:
    """Whether the peer that runs here is in the swarm and contributing: exit code 0 or 1, for container engines."""
    import time

    from peer.health import judge, read

    verdict = judge(read(folder or HOME), time.time())
    if as_json:
        print_json(vars(verdict))
    else:
        typer.echo(verdict.reason)
    if not verdict.healthy:
        raise typer.Exit(1)


def _peer_folders(folder: Path | None) -> list[Path]:
    from peer.errors import UsageError
    from peer.manners.settings import FILE_NAME

    found = [folder] if folder else sorted(HOME.glob("*"))
    found = [place for place in found if (place / FILE_NAME).exists()]
    if not found:
        raise UsageError(f"{folder or HOME} holds no peer's settings; give the folder of `join` with --dir")
    return found


def _verify_checkpoint(source: str, run: str, as_json: bool) -> None:
    from peer.verification import show_checkpoint_verdict, verify_checkpoint_with_progress

    verdict = verify_checkpoint_with_progress(source, run)
    if as_json:
        print_json({"ok": verdict.ok, **vars(verdict)})
    else:
        show_checkpoint_verdict(verdict)
    if not verdict.ok:
        sys.exit(3)


@identity_app.command("show")
def identity_show(folder: IdentityDirOption = HOME) -> None:
    """Print the peer id."""
    from peer.identity import Identity

    typer.echo(str(Identity.load(folder / "identity.key").peer_id))


@identity_app.command("new")
def identity_new(folder: IdentityDirOption = HOME) -> None:
    """Make a new identity; an existing one is never overwritten."""
    from peer.identity import Identity

    identity = Identity.new()
    identity.save(folder / "identity.key")
    typer.echo(str(identity.peer_id))


@identity_app.command("export")
def identity_export(folder: IdentityDirOption = HOME) -> None:
    """Print the identity, encrypted with a passphrase, to carry it to another machine."""
    from peer.identity import Identity

    identity = Identity.load(folder / "identity.key")
    typer.echo(identity.export(_passphrase(confirm=True)))


@identity_app.command("import")
def identity_import(
    file: Annotated[typer.FileText, typer.Argument(help="What export printed; - for stdin.")],
    folder: IdentityDirOption = HOME,
) -> None:
    """Take over an exported identity."""
    from peer.identity import Identity

    identity = Identity.import_(file.read(), _passphrase(confirm=False))
    identity.save(folder / "identity.key")
    typer.echo(str(identity.peer_id))


def _passphrase(*, confirm: bool) -> str:
    """From COMMONWEIGHTS_PASSPHRASE, or asked for at the terminal."""
    import os

    from peer.errors import UsageError

    if (given := os.environ.get("COMMONWEIGHTS_PASSPHRASE")) is not None:
        return given
    if not sys.stdin.isatty():
        raise UsageError("no terminal to ask for the passphrase; set COMMONWEIGHTS_PASSPHRASE")
    first = getpass.getpass("passphrase: ")
    if confirm and getpass.getpass("again: ") != first:
        raise UsageError("the two passphrases differ; nothing was exported")
    return first


def main() -> None:
    with as_a_command():
        app()


if __name__ == "__main__":
    main()
