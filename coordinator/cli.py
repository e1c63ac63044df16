"""commonweights-coordinator: start a run and lead it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peer.commands import INTERRUPTED, as_a_command, print_json, set_up_logging

if TYPE_CHECKING:
    from configs import RunSpec
    from coordinator.run import Coordinator

app = typer.Typer(
    help="Start a run and lead it: prepare data, serve, keep the ledger.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

WEB_PORT = 7071

ConfigArgument = Annotated[Path, typer.Argument(help="Run spec, a TOML file; configs/demo.toml explains every key.")]
DirOption = Annotated[Path, typer.Option("--dir", help="Folder of the run; the same command again resumes.")]
RunningOption = Annotated[
    Path, typer.Option("--dir", help="Folder of the running coordinator; not needed with --ticket.")
]
WebPortOption = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="Port of the page; 0: any free one. Default: 7071, or a free one."),
]
DatabaseOption = Annotated[
    str,
    typer.Option(
        envvar="COMMONWEIGHTS_DATABASE",
        help="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME; DIR/database.sqlite if not given.",
    ),
]
RemoteOption = Annotated[
    str,
    typer.Option("--ticket", help="Of a run elsewhere, with COMMONWEIGHTS_ADMIN_TOKEN; DIR/ticket.txt if not given."),
]
SettingsOption = Annotated[
    Path | None,
    typer.Option(help="Where checkpoints go and who is told of the figures; DIR/coordinator.toml if it is there."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line of stdout.")]


def _load(config: Path, **run: Any) -> RunSpec:
    from configs import SpecError, load
    from peer.errors import ConfigError

    try:
        spec = load(config)
    except SpecError as error:
        raise ConfigError(str(error)) from None
    return spec.model_copy(update={"run": spec.run.model_copy(update={k: v for k, v in run.items() if v is not None})})


def _web_ports(chosen: int | None) -> tuple[int, ...]:
    return (WEB_PORT, 0) if chosen is None else (chosen,)


@app.command()
def demo(
    config: Annotated[Path, typer.Argument(help="Run spec, a TOML file.")] = Path("configs/demo.toml"),
    peers: Annotated[int, typer.Option(min=1, max=64, help="How many peer processes.")] = 3,
    rounds: Annotated[int | None, typer.Option(min=1, help="Rounds of the run; the config's if not given.")] = None,
    folder: DirOption = Path("demo"),
    web_port: WebPortOption = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """A whole swarm on this machine: a coordinator and N peers train one model."""
    from coordinator.settings import load_settings
    from peer.terminal.console import Console

    spec = _load(config, rounds=rounds)
    organisers = load_settings(settings, folder)
    with Console() as console:
        set_up_logging(folder / "coordinator.log", console.log_handler())
        from coordinator.demo import demo as run_demo
        from coordinator.demo import result_json
        from coordinator.views import summary_of, swarm_view
        from peer.runner import run

        def show(coordinator: Coordinator) -> None:
            console.show(swarm_view(coordinator))

        ports = _web_ports(web_port)
        outcome = run(lambda stop: run_demo(spec, folder, peers, stop, show, console.event, ports, organisers))
        if outcome is None:
            raise typer.Exit(INTERRUPTED)
        coordinator, result = outcome
        if result.finished:
            console.summary(summary_of(coordinator, result))
        else:
            console.event("stopped; the same command goes on from here")
        if as_json:
            print_json(result_json(coordinator, result))
        if not result.finished:
            raise typer.Exit(INTERRUPTED)
        if not result.digests_equal and result.reports:
            raise typer.Exit(1)


@app.command()
def prepare(config: ConfigArgument, folder: DirOption) -> None:
    """Tokenise the run's data into shards (serve does it too when it has not been done)."""
    spec = _load(config)
    set_up_logging(None)
    from coordinator.prepare import prepare as prepare_data

    manifest = prepare_data(spec, folder / "data")
    typer.echo(
        f"{folder / 'data'}: {manifest.rows:,} training rows of {manifest.sequence_length} tokens, "
        f"{manifest.held_out_rows:,} held out, vocabulary {manifest.vocab_size:,}",
        err=True,
    )


@app.command()
def serve(
    config: ConfigArgument,
    folder: DirOption,
    host: Annotated[
        str, typer.Option(help="Name or address at which others reach this machine; its own addresses if not given.")
    ] = "",
    grpc_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the API; 0: any free one.")] = 7070,
    web_port: WebPortOption = None,
    swarm_port: Annotated[int, typer.Option(min=0, max=65535, help="Port for peers; 0: any free one.")] = 7072,
    recover: Annotated[
        bool, typer.Option("--recover", help="DIR was lost: begin it again from the run's key and its peers.")
    ] = False,
    identity: Annotated[
        Path | None, typer.Option(help="Backup of the run's identity.key, for a DIR that has none.")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="Where a peer of the run is (/ip4/ADDRESS/tcp/PORT/p2p/ID); repeatable.")
    ] = None,
    database: DatabaseOption = "",
    tls: Annotated[bool, typer.Option("--tls", help="TLS for the API, with a certificate made for the run.")] = False,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM file of a certificate that others trust, instead.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file of its key.")] = None,
    settings: SettingsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lead a run until it is finished; the ticket to hand out is written to DIR/ticket.txt."""
    from coordinator.settings import load_settings
    from peer.terminal.console import Console

    spec = _load(config)
    organisers = load_settings(settings, folder)
    with Console() as console:
        set_up_logging(folder / "coordinator.log", console.log_handler())
        from coordinator.lead import lead
        from coordinator.serve import ServeOptions
        from coordinator.views import swarm_view
        from peer.runner import run

        options = ServeOptions(
            folder,
            host,
            grpc_port,
            swarm_port,
            _web_ports(web_port),
            database=database,
            tls=tls,
            tls_certificate=tls_certificate,
            tls_key=tls_key,
            recover=recover,
            identity=identity,
            peers=tuple(peer or ()),
            settings=organisers,
        )
        status = run(
            lambda stop: lead(
                spec, options, stop, lambda coordinator: console.show(swarm_view(coordinator)), console.event
            )
        )
        if status is None:
            raise typer.Exit(INTERRUPTED)
        if as_json:
            print_json(status)


@app.command()
def ledger(
    folder: DirOption,
    teams: Annotated[bool, typer.Option("--teams", help="By team instead of by peer.")] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Fold the database's ledger from the log again, and say what differed.")
    ] = False,
    database: DatabaseOption = "",
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV with a header line.")] = False,
) -> None:
    """Who contributed how much: the fold of the log in DIR."""
    from coordinator.ledger import Row, TeamRow, rows, team_rows, to_csv
    from coordinator.names import Names
    from peer.log.chain import Log

    log = Log.load(folder / "log")
    if rebuild:
        from coordinator.rebuild_ledger import rebuild_ledger

        differences = rebuild_ledger(log, folder, database)
        for line in differences:
            typer.echo(line, err=True)
        typer.echo(f"the ledger is folded again: {len(differences)} differences", err=True)
    by_name = Names(folder / "names.json").by_id
    found: list[Row] | list[TeamRow] = team_rows(log.accounts) if teams else rows(log.accounts, by_name)
    if as_csv:
        sys.stdout.write(to_csv(found, TeamRow if teams else Row))
    if as_json:
        figures = {"run_id": log.run_id.hex(), "tokens": log.accounts.tokens}
        print_json({**figures, "teams" if teams else "peers": [vars(row) for row in found]})
    if not (as_csv or as_json):
        from coordinator.views import print_ledger

        print_ledger(log, found)


@app.command()
def pause(folder: RunningOption = Path(), ticket: RemoteOption = "") -> None:
    """Close no round until `resume`; peers keep what they have."""
    from protos.coordinator_pb2 import PauseRequest

    _govern(folder, ticket, "Pause", PauseRequest())


@app.command()
def resume(folder: RunningOption = Path(), ticket: RemoteOption = "") -> None:
    """Go on after `pause`."""
    from protos.coordinator_pb2 import ResumeRequest

    _govern(folder, ticket, "Resume", ResumeRequest())


@app.command()
def invite(
    folder: RunningOption = Path(),
    uses: Annotated[int, typer.Option(min=1, help="How many peers it admits.")] = 1,
    days: Annotated[float, typer.Option(min=0, help="For how long it is valid; 0: for good.")] = 0.0,
    note: Annotated[str, typer.Option(help="For your own list; see `invites`.")] = "",
    ticket: RemoteOption = "",
) -> None:
    """Make an invitation to an invite-only run; its token is shown once."""
    from protos.coordinator_pb2 import InviteRequest

    _govern(folder, ticket, "Invite", InviteRequest(uses=uses, valid_seconds=days * 86400, note=note), "token")


@app.command()
def invites(folder: RunningOption = Path(), ticket: RemoteOption = "", as_json: JsonOption = False) -> None:
    """List invitations, and who redeemed them."""
    from coordinator.organiser import list_invites
    from coordinator.views import print_invites

    found = list_invites(folder, ticket)
    if as_json:
        print_json({"invites": found})
    else:
        print_invites(found)


@app.command()
def revoke(
    folder: RunningOption = Path(),
    peer: Annotated[str, typer.Option(help="Peer id: bar it from the run; with --round: void that contribution.")] = "",
    round_: Annotated[int, typer.Option("--round", min=0, help="Of a contribution that is still pending.")] = 0,
    invitation: Annotated[int, typer.Option(min=0, help="Number of an invitation to take back; see `invites`.")] = 0,
    reason: Annotated[str, typer.Option(help="For the log and for the peer.")] = "",
    ticket: RemoteOption = "",
) -> None:
    """Bar a peer, void a pending contribution, or take an invitation back."""
    from protos.coordinator_pb2 import RevokeRequest

    request = RevokeRequest(peer_id=peer, round=round_, invite=invitation, reason=reason)
    _govern(folder, ticket, "Revoke", request)


@app.command()
def checkpoint(folder: RunningOption = Path(), ticket: RemoteOption = "") -> None:
    """Evaluate and write a checkpoint of the present state now."""
    from protos.coordinator_pb2 import CheckpointRequest

    _govern(folder, ticket, "Checkpoint", CheckpointRequest())


@app.command()
def finish(folder: RunningOption = Path(), ticket: RemoteOption = "") -> None:
    """End the run with the open round."""
    from protos.coordinator_pb2 import FinishRequest

    _govern(folder, ticket, "Finish", FinishRequest())


def _govern(folder: Path, ticket: str, method: str, request: Any, answer: str = "message") -> None:
    from coordinator.organiser import govern

    typer.echo(getattr(govern(folder, ticket, method, request), answer))


def main() -> None:
    with as_a_command():
        app()


if __name__ == "__main__":
    main()
