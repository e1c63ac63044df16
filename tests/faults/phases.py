"""Watching in which phase of a round a node is, from outside the product: it has no switches for tests.

`observed` lets a function see every node's steps through a round, at the moment when they happen. What the function
does (stop the process for good, say) happens exactly there. Two phases are finer than what a node shows its user:
"serving" is the middle of sending its contribution to somebody, "exchanging" the middle of receiving another's.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from peer.exchange.exchange import Exchange
from peer.node import Node
from peer.rounds.sequencer import TRAINING

Observer = Callable[[Node, str], None]


@contextlib.contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """Calls `observer(node, phase)` for every node that is made meanwhile, in the thread of its event loop."""
    nodes: WeakKeyDictionary[Exchange, Node] = WeakKeyDictionary()
    phases: WeakKeyDictionary[Node, str] = WeakKeyDictionary()
    initialise, serve, arrived = Node.__init__, Exchange._serve, Exchange._arrived

    def tell(exchange: Exchange, phase: str) -> None:
        if (node := nodes.get(exchange)) is not None:
            observer(node, phase)

    def initialised(node: Node, *arguments: Any, **options: Any) -> None:
        initialise(node, *arguments, **options)
        nodes[node.replica.exchange] = node

    async def served(exchange: Exchange, *arguments: Any) -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(serve(exchange, *arguments)) as pieces:
            async for piece in pieces:
                tell(exchange, "serving")
                yield piece

    async def received(exchange: Exchange, *arguments: Any) -> None:
        tell(exchange, "exchanging")
        await arrived(exchange, *arguments)

    def shown(node: Node) -> str:
        return phases[node]

    def entered(node: Node, phase: str) -> None:
        phases[node] = phase
        if phase != TRAINING or node.contributor.backlog.unsent.tokens:  # training: in the middle of it
            observer(node, phase)

    patches: dict[tuple[type, str], Any] = {
        (Node, "__init__"): initialised,
        (Node, "phase"): property(shown, entered),
        (Exchange, "_serve"): served,
        (Exchange, "_arrived"): received,
    }
    try:
        for (owner, name), value in patches.items():
            setattr(owner, name, value)
        yield
    finally:
        Node.__init__, Exchange._serve, Exchange._arrived = initialise, serve, arrived  # type: ignore[method-assign]
        delattr(Node, "phase")
