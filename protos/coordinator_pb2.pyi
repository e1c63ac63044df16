from protos import log_pb2 as _log_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    def __init__(self, run_id: _Optional[bytes] = ...) -> None: ...

class GetRunReply(_message.Message):
    __slots__ = ("run_id", "genesis", "swarm_addresses", "version")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    GENESIS_FIELD_NUMBER: _ClassVar[int]
    SWARM_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    genesis: _log_pb2.Signed
    swarm_addresses: _containers.RepeatedScalarFieldContainer[str]
    version: str
    def __init__(self, run_id: _Optional[bytes] = ..., genesis: _Optional[_Union[_log_pb2.Signed, _Mapping]] = ..., swarm_addresses: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    def __init__(self, run_id: _Optional[bytes] = ...) -> None: ...

class PeerStatus(_message.Message):
    __slots__ = ("peer_id", "name", "team", "phase", "head_round", "round_tokens", "tokens_per_second", "loss", "credit_tokens", "hardware", "bytes_sent", "bytes_received", "seen_seconds_ago")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEAM_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    HEAD_ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUND_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    CREDIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    SEEN_SECONDS_AGO_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    name: str
    team: str
    phase: str
    head_round: int
    round_tokens: int
    tokens_per_second: float
    loss: float
    credit_tokens: int
    hardware: str
    bytes_sent: int
    bytes_received: int
    seen_seconds_ago: float
    def __init__(self, peer_id: _Optional[str] = ..., name: _Optional[str] = ..., team: _Optional[str] = ..., phase: _Optional[str] = ..., head_round: _Optional[int] = ..., round_tokens: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., loss: _Optional[float] = ..., credit_tokens: _Optional[int] = ..., hardware: _Optional[str] = ..., bytes_sent: _Optional[int] = ..., bytes_received: _Optional[int] = ..., seen_seconds_ago: _Optional[float] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("run_id", "name", "round", "tokens", "target_tokens", "target_rounds", "eta_seconds", "loss", "eval_loss", "tokens_per_second", "peers", "sequencer", "checkpoint", "state", "state_digest", "finished", "sample")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TARGET_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TARGET_ROUNDS_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCER_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    name: str
    round: int
    tokens: int
    target_tokens: int
    target_rounds: int
    eta_seconds: float
    loss: float
    eval_loss: float
    tokens_per_second: float
    peers: _containers.RepeatedCompositeFieldContainer[PeerStatus]
    sequencer: str
    checkpoint: str
    state: str
    state_digest: str
    finished: bool
    sample: str
    def __init__(self, run_id: _Optional[str] = ..., name: _Optional[str] = ..., round: _Optional[int] = ..., tokens: _Optional[int] = ..., target_tokens: _Optional[int] = ..., target_rounds: _Optional[int] = ..., eta_seconds: _Optional[float] = ..., loss: _Optional[float] = ..., eval_loss: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., peers: _Optional[_Iterable[_Union[PeerStatus, _Mapping]]] = ..., sequencer: _Optional[str] = ..., checkpoint: _Optional[str] = ..., state: _Optional[str] = ..., state_digest: _Optional[str] = ..., finished: bool = ..., sample: _Optional[str] = ...) -> None: ...

class ListRecordsRequest(_message.Message):
    __slots__ = ("run_id", "first_round", "count")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROUND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    first_round: int
    count: int
    def __init__(self, run_id: _Optional[bytes] = ..., first_round: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class ListRecordsReply(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[_log_pb2.Signed]
    def __init__(self, records: _Optional[_Iterable[_Union[_log_pb2.Signed, _Mapping]]] = ...) -> None: ...

class GetLedgerRequest(_message.Message):
    __slots__ = ("run_id", "page_size", "page_token")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    page_size: int
    page_token: str
    def __init__(self, run_id: _Optional[bytes] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class LedgerRow(_message.Message):
    __slots__ = ("peer_id", "name", "credit_tokens", "contributions", "refused", "last_refusal", "first_round", "last_round")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CREDIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    LAST_REFUSAL_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROUND_FIELD_NUMBER: _ClassVar[int]
    LAST_ROUND_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    name: str
    credit_tokens: int
    contributions: int
    refused: int
    last_refusal: str
    first_round: int
    last_round: int
    def __init__(self, peer_id: _Optional[str] = ..., name: _Optional[str] = ..., credit_tokens: _Optional[int] = ..., contributions: _Optional[int] = ..., refused: _Optional[int] = ..., last_refusal: _Optional[str] = ..., first_round: _Optional[int] = ..., last_round: _Optional[int] = ...) -> None: ...

class GetLedgerReply(_message.Message):
    __slots__ = ("rows", "total_tokens", "next_page_token")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[LedgerRow]
    total_tokens: int
    next_page_token: str
    def __init__(self, rows: _Optional[_Iterable[_Union[LedgerRow, _Mapping]]] = ..., total_tokens: _Optional[int] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Ticket(_message.Message):
    __slots__ = ("run_id", "coordinator", "grpc_addresses", "swarm_addresses")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    GRPC_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    SWARM_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    coordinator: bytes
    grpc_addresses: _containers.RepeatedScalarFieldContainer[str]
    swarm_addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, run_id: _Optional[bytes] = ..., coordinator: _Optional[bytes] = ..., grpc_addresses: _Optional[_Iterable[str]] = ..., swarm_addresses: _Optional[_Iterable[str]] = ...) -> None: ...
