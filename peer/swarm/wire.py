"""How two peers talk over one byte stream: length-prefixed frames, and the manners on both ends.

Conversation: the caller sends one frame with the method's name and one with the request. A call is answered with one
frame, a stream with frames of at most one piece each and an empty one as the end; either with a frame that carries a
refusal. An explicit end mark, because a dead process looks like a normal end of the stream to libp2p; an explicit
length in front, so that what is too large is refused unread.

Frame on the wire: 4 bytes big-endian length, then a `protos.swarm_pb2.Frame`. Nothing here knows where the streams
come from; deadlines are on every read and every write, because a frozen other side blocks both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError

from peer.errors import CommonweightsError, Refused, UnreachableError
from peer.identity import PeerId
from peer.swarm.interface import MAX_REPLY_BYTES, PIECE_BYTES, Handler, StreamHandler
from protos.swarm_pb2 import Frame

logger = logging.getLogger(__name__)

REQUEST_SECONDS = 30.0  # for the whole request to arrive
SEND_SECONDS = 60.0  # for one piece to leave: 256 KiB in 60 s is 35 kbit/s
HANG_UP_SECONDS = 60.0  # for the caller to close first: libp2p drops what is under way when the server closes
HANG_UP_BYTES = 16 * 1024 * 1024  # of a refused request that are read and dropped meanwhile
MAX_CONVERSATIONS = 1024  # incoming, all peers together
MAX_CONVERSATIONS_PER_PEER = 128
MAX_TURNED_AWAY = 256  # incoming beyond these limits that still hear why
TURN_AWAY_SECONDS = 2.0
MAX_METHOD_BYTES = 100
MAX_REFUSAL_CHARACTERS = 500

_LENGTH_BYTES = 4
_FRAME_SLACK_BYTES = 16  # protobuf's tag and length around `body`

_T = TypeVar("_T")


@dataclass(frozen=True)
class Service:
    """One method that others may use."""

    method: str
    handler: Handler | StreamHandler
    max_request_bytes: int
    is_stream: bool


class Services:
    """The methods a peer serves, and the rules that hold for all of them: sizes, refusals, how much at once."""

    def __init__(self) -> None:
        self._services: dict[str, Service] = {}
        self._talking: Counter[PeerId] = Counter()
        self._turned_away = 0

    def add(self, service: Service) -> None:
        assert service.method not in self._services, f"{service.method} is served already"
        self._services[service.method] = service

    def __iter__(self) -> Iterator[Service]:
        return iter(list(self._services.values()))

    def find(self, method: str) -> Service:
        service = self._services.get(method)
        if service is None:
            raise Refused(clean(f"does not serve {method!r}"))
        return service

    @contextlib.contextmanager
    def admit(self, sender: PeerId) -> Iterator[None]:
        """Raises Refused when the sender, or everybody together, keeps too many conversations open."""
        if self._talking[sender] >= MAX_CONVERSATIONS_PER_PEER or self._talking.total() >= MAX_CONVERSATIONS:
            raise Refused("busy: too many requests at once; try again later")
        self._talking[sender] += 1
        try:
            yield
        finally:
            self._talking[sender] -= 1
            if not self._talking[sender]:
                del self._talking[sender]

    async def turn_away(self, error: Refused, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Says why, as long as there are not too many to tell: a close with unread bytes would lose the words."""
        if self._turned_away >= MAX_TURNED_AWAY:
            return
        self._turned_away += 1
        try:
            await _write_frames(writer, Frame(refusal=clean(str(error))))
            async with asyncio.timeout(TURN_AWAY_SECONDS):
                await _let_hang_up(reader)
        finally:
            self._turned_away -= 1

    async def answer(self, method: str, sender: PeerId, request: bytes) -> AsyncGenerator[bytes, None]:
        """A whole conversation without a wire: for calls to oneself and for the in-memory swarm."""
        with self.admit(sender):
            async with contextlib.aclosing(self.pieces(self.find(method), sender, request)) as pieces:
                async for piece in pieces:
                    yield piece

    async def pieces(self, service: Service, sender: PeerId, request: bytes) -> AsyncGenerator[bytes, None]:
        """Runs the handler. Whatever goes wrong in it becomes a Refused with a reason fit for the other side."""
        if len(request) > service.max_request_bytes:
            raise Refused(f"the request has {len(request)} bytes, the limit is {service.max_request_bytes}")
        try:
            answer = service.handler(sender, request)
            if isinstance(answer, AsyncIterator):
                try:
                    async for piece in answer:
                        for offset in range(0, len(piece), PIECE_BYTES):
                            yield piece[offset : offset + PIECE_BYTES]
                finally:
                    close = getattr(answer, "aclose", None)
                    if close is not None:
                        await close()
            else:
                reply = await answer
                if len(reply) > MAX_REPLY_BYTES:
                    raise Refused(f"the reply has {len(reply)} bytes, the limit is {MAX_REPLY_BYTES}")
                yield reply
        except CommonweightsError as error:
            raise Refused(clean(str(error))) from error
        except DecodeError:
            raise Refused("the request is not a valid message") from None
        except Exception:
            logger.exception("handler of %s failed on a request of %s", service.method, sender.short)
            raise Refused("internal error") from None


def clean(text: str) -> str:
    """A text of a stranger that is safe to print: no control characters, not too long, never empty."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_REFUSAL_CHARACTERS]) or "refused"


async def first_piece(pieces: AsyncGenerator[bytes, None], limit: int) -> bytes:
    """The reply to a call, out of `Services.answer`."""
    async with contextlib.aclosing(pieces):
        reply = await anext(pieces, b"")
        if len(reply) > limit:
            raise Refused(f"the reply has {len(reply)} bytes, the limit is {limit}")
        return reply


async def counted(pieces: AsyncGenerator[bytes, None], limit: int) -> AsyncGenerator[bytes, None]:
    """Passes the pieces of a stream on until there are more than `limit` bytes: then Refused."""
    received = 0
    async with contextlib.aclosing(pieces):
        async for piece in pieces:
            received += len(piece)
            if received > limit:
                raise Refused(f"sends more than the {limit} bytes asked for")
            yield piece


async def timed(pieces: AsyncGenerator[bytes, None], timeout_seconds: float) -> AsyncGenerator[bytes, None]:
    """Passes pieces on; UnreachableError when one takes longer than `timeout_seconds`."""
    async with contextlib.aclosing(pieces):
        while True:
            try:
                async with asyncio.timeout(timeout_seconds):
                    piece = await anext(pieces, None)
            except TimeoutError:
                raise UnreachableError(f"silent for {timeout_seconds:g} s") from None
            if piece is None:
                return
            yield piece


async def serve_conversation(
    services: Services, sender: PeerId, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answers one incoming stream, whatever is sent on it, and closes it. Raises nothing but CancelledError."""
    try:
        with services.admit(sender):
            try:
                async with asyncio.timeout(REQUEST_SECONDS):
                    method = await _read_frame(reader, MAX_METHOD_BYTES)
                    if method is None:
                        return
                    service = services.find(method.body.decode(errors="replace"))
                    request = await _read_frame(reader, service.max_request_bytes)
                    if request is None:
                        return
                await _until_hang_up(reader, _answer(services, service, sender, request.body, writer))
            except (Refused, DecodeError) as error:
                await _write_frames(writer, Frame(refusal=clean(str(error))))
            await _let_hang_up(reader)
    except Refused as error:  # not admitted
        with contextlib.suppress(TimeoutError, OSError):
            await services.turn_away(error, reader, writer)
    except (TimeoutError, OSError):
        pass
    finally:
        hang_up(writer)


async def _answer(
    services: Services, service: Service, sender: PeerId, request: bytes, writer: asyncio.StreamWriter
) -> None:
    async with contextlib.aclosing(services.pieces(service, sender, request)) as pieces:
        async for piece in pieces:
            if piece or not service.is_stream:
                await _write_frames(writer, Frame(body=piece))
    if service.is_stream:
        await _write_frames(writer, Frame())


async def ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, request: bytes, *, limit: int
) -> bytes:
    """The caller's end of a call. The deadline is the caller's; the stream is closed in any case.

    Raises Refused for a refusal and for a reply above `limit` bytes, UnreachableError for a hang-up or garbage.
    """
    async with _speaking(writer, method, request):
        return (await _read_answer(reader, limit)).body


async def listen(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, request: bytes
) -> AsyncGenerator[bytes, None]:
    """The caller's end of a stream: every piece until the end mark. Raises as `ask` does. Closes the stream."""
    async with _speaking(writer, method, request):
        while (frame := await _read_answer(reader, PIECE_BYTES)).body:
            yield frame.body


@contextlib.asynccontextmanager
async def _speaking(writer: asyncio.StreamWriter, method: str, request: bytes) -> AsyncIterator[None]:
    """Sends in the background, because a refusal may come before all is sent; hangs up at the end."""
    sending = asyncio.ensure_future(_write_frames(writer, Frame(body=method.encode()), Frame(body=request)))
    try:
        yield
    except DecodeError:
        raise UnreachableError("answered with garbage") from None
    except OSError as error:
        raise UnreachableError(f"the connection broke: {error}") from None
    finally:
        sending.cancel()
        hang_up(writer)
        await asyncio.gather(sending, return_exceptions=True)


async def _read_answer(reader: asyncio.StreamReader, limit: int) -> Frame:
    frame = await _read_frame(reader, limit)
    if frame is None:
        raise UnreachableError("hung up before the end")
    if frame.refusal:
        raise Refused(clean(frame.refusal))
    return frame


def hang_up(writer: asyncio.StreamWriter) -> None:
    """Closes at once if all is sent, else drops what is left: a frozen other side must not hold buffers of ours."""
    transport = writer.transport
    if transport.get_write_buffer_size():
        transport.abort()
    else:
        writer.close()


async def _read_frame(reader: asyncio.StreamReader, limit: int) -> Frame | None:
    """None at a hang-up before or within the frame. Raises Refused above `limit` body bytes, DecodeError."""
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        if length > max(limit, MAX_REFUSAL_CHARACTERS * 4) + _FRAME_SLACK_BYTES:
            raise Refused(f"a message of {length} bytes, the limit is {limit}")
        frame = Frame.FromString(await reader.readexactly(length))
    except asyncio.IncompleteReadError:
        return None
    if len(frame.body) > limit:
        raise Refused(f"a message of {len(frame.body)} bytes, the limit is {limit}")
    return frame


async def _write_frames(writer: asyncio.StreamWriter, *frames: Frame) -> None:
    """In one go: what is written apart leaves in packets of its own, each with 100 bytes of headers around it."""
    bodies = [frame.SerializeToString() for frame in frames]
    writer.writelines(part for body in bodies for part in (len(body).to_bytes(_LENGTH_BYTES, "big"), body))
    async with asyncio.timeout(SEND_SECONDS):
        await writer.drain()


async def _let_hang_up(reader: asyncio.StreamReader) -> None:
    dropped = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HANG_UP_SECONDS):
            while dropped < HANG_UP_BYTES and (data := await reader.read(PIECE_BYTES)):
                dropped += len(data)


async def _until_hang_up(reader: asyncio.StreamReader, work: Awaitable[_T]) -> _T | None:
    """Runs `work`, but no longer than somebody listens. A caller sends nothing after its request."""
    worker = asyncio.ensure_future(work)
    listener = asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({worker, listener}, return_when=asyncio.FIRST_COMPLETED)
        return worker.result() if worker.done() else None
    finally:
        for task in (worker, listener):
            task.cancel()
        await asyncio.gather(worker, listener, return_exceptions=True)
