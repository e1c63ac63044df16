"""Tickets: one line that survives being handed around, and says so when it did not."""

from __future__ import annotations

import string
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from peer.errors import UnreachableError, UsageError
from peer.identity import PeerId
from peer.ticket import Ticket, split_address

TICKET = Ticket(
    run_id=bytes(range(32)),
    coordinator=PeerId.from_public_key(bytes(range(32, 64))),
    grpc_addresses=("coordinator.example.org:4430", "[2001:db8::1]:4430"),
    swarm_addresses=("/ip4/198.51.100.7/tcp/4431", "/dns4/coordinator.example.org/tcp/4431"),
)
TOKEN = str(TICKET)

hosts = st.from_regex(r"[a-z0-9.-]{1,40}", fullmatch=True)
ports = st.integers(1, 65535)
tickets = st.builds(
    Ticket,
    run_id=st.binary(min_size=32, max_size=32),
    coordinator=st.builds(PeerId.from_public_key, st.binary(min_size=32, max_size=32)),
    grpc_addresses=st.lists(st.builds("{}:{}".format, hosts, ports), max_size=4).map(tuple),
    swarm_addresses=st.lists(st.builds("/dns4/{}/tcp/{}".format, hosts, ports), min_size=1, max_size=4).map(tuple),
)


@given(tickets)
def test_what_was_written_is_read(ticket: Ticket) -> None:
    """A ticket survives its own text."""
    assert Ticket.parse(str(ticket)) == ticket


@given(tickets)
def test_a_double_click_selects_it(ticket: Ticket) -> None:
    """Letters and digits only: nothing that a shell, a chat program or a terminal would treat specially."""
    assert str(ticket).isascii()
    assert str(ticket).isalnum()


@given(st.integers(1, 100), st.sampled_from(["{}", "  {}\n", '"{}"', "`{}`", "<{}>", "\r\n{}\r\n"]))
def test_wrapping_and_white_space_do_no_harm(width: int, frame: str) -> None:
    """A ticket broken into lines of any width, indented, quoted or in capitals is the same ticket."""
    assert Ticket.parse(frame.format("\n  ".join(textwrap.wrap(TOKEN, width)))) == TICKET
    assert Ticket.parse(frame.format(TOKEN.upper())) == TICKET


def test_every_cut_is_called_a_cut() -> None:
    """A ticket cut off anywhere is refused, with how much of it is there."""
    for length in range(3, len(TOKEN)):
        with pytest.raises(UsageError, match="the ticket is damaged: it is cut off.*copy it again"):
            Ticket.parse(TOKEN[:length])


@given(st.integers(3, len(TOKEN) - 1), st.sampled_from(string.ascii_lowercase + string.digits))
def test_every_wrong_character_is_noticed(position: int, character: str) -> None:
    """One mistyped character after the version is never accepted, and never more than one line of complaint."""
    if TOKEN[position] == character:
        return
    with pytest.raises(UsageError, match="the ticket is damaged") as error:
        Ticket.parse(TOKEN[:position] + character + TOKEN[position + 1 :])
    assert "\n" not in str(error.value)


@given(st.text(max_size=300))
@example("~nobody/ticket.txt")
@example("a\0b")
@example("x" * 300)
def test_garbage_is_a_usage_error(text: str) -> None:
    """Whatever is typed in place of a ticket gives one line, not a stack trace."""
    with pytest.raises(UsageError) as error:
        Ticket.parse(text)
    assert len(str(error.value).splitlines()) == 1


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz234567", max_size=300))
def test_garbage_in_the_right_alphabet_is_a_usage_error(text: str) -> None:
    """The same for what looks like a ticket."""
    with pytest.raises(UsageError):
        Ticket.parse("cw1" + text)


def test_another_version_says_so() -> None:
    """A ticket of a later version is not called damaged."""
    with pytest.raises(UsageError, match="version 2, and this program reads version 1: update"):
        Ticket.parse("cw2" + TOKEN[3:])


def test_a_letter_that_cannot_occur_is_named() -> None:
    """A nought for an o is pointed out."""
    with pytest.raises(UsageError, match="'0' cannot occur in it"):
        Ticket.parse(TOKEN[:20] + "0" + TOKEN[21:])


def test_too_much_is_not_called_too_little() -> None:
    """A ticket with something added, or pasted twice, is told from one that is cut off."""
    with pytest.raises(UsageError, match=f"{len(TOKEN) + 5} characters instead of {len(TOKEN)}"):
        Ticket.parse(TOKEN + "hello")
    with pytest.raises(UsageError, match="two of them"):
        Ticket.parse(TOKEN + TOKEN)


def test_reads_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of ticket.txt, or of the folder it lies in, will do in place of the ticket."""
    path = TICKET.save(tmp_path)
    assert path.read_text() == TOKEN + "\n"
    monkeypatch.chdir(tmp_path)
    for text in (str(path), str(tmp_path), "ticket.txt", "./ticket.txt ", "."):
        assert Ticket.parse(text) == TICKET


def test_a_file_without_a_ticket_is_named(tmp_path: Path) -> None:
    """Missing, empty and other files, and a damaged ticket in a file, are all told apart."""
    path = tmp_path / "ticket.txt"
    with pytest.raises(UsageError, match="neither a ticket .* nor a file"):
        Ticket.parse(str(path))
    path.write_bytes(b"\xff\x00 not a ticket")
    with pytest.raises(UsageError, match="no ticket in it"):
        Ticket.parse(str(path))
    path.write_text(TOKEN[:50])
    with pytest.raises(UsageError, match="cut off after 50 of"):
        Ticket.parse(str(path))


def test_nothing_at_all_says_where_to_ask() -> None:
    """An empty argument (an unset shell variable) is answered with what to do."""
    with pytest.raises(UsageError, match="no ticket given; ask"):
        Ticket.parse(" \n")


@pytest.mark.parametrize("address", ["host", "host:", ":80", "host:port", "host:0", "host:65536", "::1:80", "h:٣"])
def test_addresses_are_checked_when_a_ticket_is_made(address: str) -> None:
    """A wrong address is refused by the coordinator that writes it, not by the peers that read it."""
    with pytest.raises(UsageError):
        Ticket(TICKET.run_id, TICKET.coordinator, (address,), ())


def test_addresses_split() -> None:
    """Host and port come apart, with or without IPv6 brackets."""
    assert split_address("example.org:80") == ("example.org", 80)
    assert split_address("[::1]:80") == ("::1", 80)


def test_a_ticket_leads_somewhere() -> None:
    """A ticket without addresses, or with something that is no multiaddr, cannot be made."""
    with pytest.raises(UsageError, match="leads nowhere"):
        Ticket(TICKET.run_id, TICKET.coordinator, (), ())
    with pytest.raises(UsageError, match="not a multiaddr"):
        Ticket(TICKET.run_id, TICKET.coordinator, (), ("10.0.0.1:80",))


def test_a_ticket_is_fetched_from_a_url() -> None:
    """The page's address of it will do; what is not there, not a ticket, or not answering is said."""
    answers = {"/ticket": TOKEN.encode(), "/page": b"<html>hello</html>"}

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers.get(self.path)
            self.send_response(200 if body else 404)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert str(Ticket.parse(f"{url}/ticket")) == TOKEN
        with pytest.raises(UsageError, match="no ticket in it"):
            Ticket.parse(f"{url}/page")
        with pytest.raises(UsageError, match="404"):
            Ticket.parse(f"{url}/nothing")
        server.shutdown()
    with pytest.raises(UnreachableError, match="is the coordinator up"):
        Ticket.parse(f"{url}/ticket")


def test_a_ticket_names_other_peers_too() -> None:
    """In case the coordinator is away: a few, the newest ones, each with its key; old readers of the coordinator's
    addresses lose nothing."""
    coordinator, peers = PeerId(bytes(32)), [PeerId(bytes([number]) * 32) for number in range(1, 8)]
    ticket = Ticket(bytes(32), coordinator, ("a:1",), ("/ip4/1.2.3.4/tcp/1",))
    assert ticket.contacts == {coordinator: ["/ip4/1.2.3.4/tcp/1"]}
    for number, peer in enumerate(peers):
        ticket = ticket.naming(peer, [f"/ip4/5.6.7.{number}/tcp/{port}" for port in (1, 2, 3)])
    ticket = Ticket.parse(str(ticket.naming(peers[4], ["/dns4/five/tcp/5"])))
    assert ticket.contacts == {
        coordinator: ["/ip4/1.2.3.4/tcp/1"],
        **{peers[n]: [f"/ip4/5.6.7.{n}/tcp/1", f"/ip4/5.6.7.{n}/tcp/2"] for n in (3, 5, 6)},
        peers[4]: ["/dns4/five/tcp/5"],
    }
    with pytest.raises(UsageError):
        Ticket(bytes(32), coordinator, (), ("/ip4/1.2.3.4/tcp/1/p2p/nobody",))
