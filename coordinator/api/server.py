"""The gRPC server: limits, TLS, the organiser's token, health and reflection, and errors as what they are.

Anybody may call it. A request is at most `MAX_REQUEST_BYTES`; a connection has few streams, must not ping more often
than `MIN_PING_SECONDS`, and is ended when it is dead. Nothing of a request is logged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from coordinator.api.admin import AdminService, Governed
from coordinator.api.files import NotFound
from coordinator.api.public import MAX_REPLY_BYTES, CoordinatorService, Run, TooMany
from coordinator.api.tls import ServerCertificate
from coordinator.api.token import is_token
from peer.errors import CommonweightsError, Refused, UnreachableError, UsageError
from protos import coordinator_pb2, coordinator_pb2_grpc

logger = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 64 << 10
MAX_CALLS = 2000  # at once
MIN_PING_SECONDS = 10
DEADLINE_SECONDS = 60.0  # of a call that is answered once, whatever its caller would allow
OPTIONS = [
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    ("grpc.max_send_message_length", 2 * MAX_REPLY_BYTES),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.max_concurrent_streams", 100),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_SECONDS * 1000),
    ("grpc.so_reuseport", 0),
]

_STATUS: tuple[tuple[type[Exception], grpc.StatusCode], ...] = (  # the first that fits
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (TooMany, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (UsageError, grpc.StatusCode.INVALID_ARGUMENT),
    (UnreachableError, grpc.StatusCode.UNAVAILABLE),
    (Refused, grpc.StatusCode.FAILED_PRECONDITION),
    (CommonweightsError, grpc.StatusCode.ABORTED),
)

Continuation = Callable[[Any], Awaitable[Any]]


class Served(Run, Governed, Protocol):
    """What the whole API is about."""


class ErrorsAsStatus(grpc.aio.ServerInterceptor):
    """What our errors say is for the caller; anything else is our fault, and says nothing of our insides."""

    async def intercept_service(self, continuation: Continuation, details: Any) -> Any:
        handler = await continuation(details)
        if handler is None:
            return None
        if handler.response_streaming:
            return handler._replace(unary_stream=_streaming(handler.unary_stream)) if handler.unary_stream else handler
        return handler._replace(unary_unary=_answering(handler.unary_unary))


def _answering(method: Any) -> Any:
    async def call(request: Any, context: Any) -> Any:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await method(request, context)
        except CommonweightsError as error:
            await _abort(context, error)
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "this took too long; try again later")
        except Exception as error:
            await _abort_ours(context, error)

    return call


def _streaming(method: Any) -> Any:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for reply in method(request, context):
                yield reply
        except CommonweightsError as error:
            await _abort(context, error)
        except Exception as error:
            await _abort_ours(context, error)

    return call


async def _abort_ours(context: Any, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):  # said already
        raise error
    logger.error("a call failed", exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, "a fault of the coordinator; its log says more")


async def _abort(context: Any, error: CommonweightsError) -> None:
    code = next(code for kind, code in _STATUS if isinstance(error, kind))
    await context.abort(code, " ".join(str(error).split()))


class OrganiserOnly(grpc.aio.ServerInterceptor):
    """Refuses calls of the Admin service without the token, before anything of them is read."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def intercept_service(self, continuation: Continuation, details: Any) -> Any:
        if not details.method.startswith(f"/{_name('Admin')}/"):
            return await continuation(details)
        given = [item[1] for item in details.invocation_metadata if item[0] == "authorization"]
        if len(given) == 1 and is_token(self._token, given[0]):
            return await continuation(details)

        async def refuse(request: Any, context: Any) -> None:
            words = "for the organiser only: send the metadata `authorization: Bearer TOKEN` (TOKEN: DIR/admin-token)"
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, words)

        return grpc.unary_unary_rpc_method_handler(refuse)


def _name(service: str) -> str:
    return str(coordinator_pb2.DESCRIPTOR.services_by_name[service].full_name)


@asynccontextmanager
async def served(
    run: Served, host: str, port: int, token: str, certificate: ServerCertificate | None = None
) -> AsyncIterator[int]:
    """The API at host:port (0: any free port) while the block runs; yields the port.

    Raises:
        UsageError: the port is in use.
    """
    server = grpc.aio.server(
        interceptors=(OrganiserOnly(token), ErrorsAsStatus()), options=OPTIONS, maximum_concurrent_rpcs=MAX_CALLS
    )
    coordinator_pb2_grpc.add_CoordinatorServicer_to_server(CoordinatorService(run), server)
    coordinator_pb2_grpc.add_AdminServicer_to_server(AdminService(run), server)
    names = (_name("Coordinator"), _name("Admin"))
    checker = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    reflection.enable_server_reflection((*names, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    try:
        if certificate is None:
            bound = server.add_insecure_port(f"{host}:{port}")
        else:
            credentials = grpc.ssl_server_credentials([(certificate.key, certificate.chain)])
            bound = server.add_secure_port(f"{host}:{port}", credentials)
    except RuntimeError:
        raise UsageError(
            f"--grpc-port {port}: cannot listen there on {host}; it is in use, choose another port"
        ) from None
    await server.start()
    for name in ("", *names):
        await checker.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield bound
    finally:
        await server.stop(grace=1.0)
