"""The only import of hivemind, and nothing of it but what the session needs.

Importing hivemind configures the whole process: torch's sharing strategy ("file_system"), the multiprocessing start
method (pinned, because it makes a lock), a log handler of its own on stderr, and the name of a log level. All of that
is put back here. What cannot be avoided: it imports torch (seconds), and its environment variable for the log level is
read once, so HIVEMIND_LOGLEVEL has to be set before.
"""

from __future__ import annotations

import logging
import multiprocessing
import os

import torch.multiprocessing

os.environ.setdefault("HIVEMIND_LOGLEVEL", "ERROR")
_sharing_strategy = torch.multiprocessing.get_sharing_strategy()
_start_method = multiprocessing.get_start_method(allow_none=True)

from hivemind.dht.protocol import DHTProtocol, ValidationError  # noqa: E402
from hivemind.dht.routing import DHTID  # noqa: E402
from hivemind.dht.storage import DictionaryDHTValue  # noqa: E402
from hivemind.p2p import P2P, P2PContext, PeerID  # noqa: E402
from hivemind.p2p.p2p_daemon_bindings.control import ControlClient  # noqa: E402
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError, read_pbmsg_safe, write_pbmsg  # noqa: E402
from hivemind.proto import dht_pb2, p2pd_pb2  # noqa: E402
from hivemind.utils.logging import use_hivemind_log_handler  # noqa: E402
from hivemind.utils.multiaddr import Multiaddr  # noqa: E402
from hivemind.utils.serializer import MSGPackSerializer  # noqa: E402

torch.multiprocessing.set_sharing_strategy(_sharing_strategy)
if _start_method is None:
    multiprocessing.set_start_method(None, force=True)
use_hivemind_log_handler("nowhere")
logging.getLogger("hivemind").setLevel(os.environ["HIVEMIND_LOGLEVEL"])
logging.addLevelName(logging.WARNING, "WARNING")

__all__ = [
    "DHTID",
    "P2P",
    "ControlClient",
    "DHTProtocol",
    "DictionaryDHTValue",
    "MSGPackSerializer",
    "Multiaddr",
    "P2PContext",
    "P2PDaemonError",
    "PeerID",
    "ValidationError",
    "dht_pb2",
    "p2pd_pb2",
    "read_pbmsg_safe",
    "write_pbmsg",
]
