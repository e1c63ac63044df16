from protos import log_pb2 as _log_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Frame(_message.Message):
    __slots__ = ("body", "refusal")
    BODY_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    refusal: str
    def __init__(self, body: _Optional[bytes] = ..., refusal: _Optional[str] = ...) -> None: ...

class Presence(_message.Message):
    __slots__ = ("run_id", "name", "team", "addresses", "head_round", "state_digest", "round", "tokens", "inner_steps", "loss", "tokens_per_second", "phase", "hardware", "can_serve", "bytes_sent", "bytes_received", "admission", "held")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEAM_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    HEAD_ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    INNER_STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    CAN_SERVE_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    BYTES_RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    name: str
    team: str
    addresses: _containers.RepeatedScalarFieldContainer[str]
    head_round: int
    state_digest: bytes
    round: int
    tokens: int
    inner_steps: int
    loss: float
    tokens_per_second: float
    phase: str
    hardware: str
    can_serve: bool
    bytes_sent: int
    bytes_received: int
    admission: _log_pb2.Signed
    held: _containers.RepeatedCompositeFieldContainer[_log_pb2.Range]
    def __init__(self, run_id: _Optional[bytes] = ..., name: _Optional[str] = ..., team: _Optional[str] = ..., addresses: _Optional[_Iterable[str]] = ..., head_round: _Optional[int] = ..., state_digest: _Optional[bytes] = ..., round: _Optional[int] = ..., tokens: _Optional[int] = ..., inner_steps: _Optional[int] = ..., loss: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., phase: _Optional[str] = ..., hardware: _Optional[str] = ..., can_serve: bool = ..., bytes_sent: _Optional[int] = ..., bytes_received: _Optional[int] = ..., admission: _Optional[_Union[_log_pb2.Signed, _Mapping]] = ..., held: _Optional[_Iterable[_Union[_log_pb2.Range, _Mapping]]] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("presence", "wanted_sequences")
    PRESENCE_FIELD_NUMBER: _ClassVar[int]
    WANTED_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    presence: Presence
    wanted_sequences: int
    def __init__(self, presence: _Optional[_Union[Presence, _Mapping]] = ..., wanted_sequences: _Optional[int] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("leased", "lease_seconds", "revoked", "message")
    LEASED_FIELD_NUMBER: _ClassVar[int]
    LEASE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    leased: _containers.RepeatedCompositeFieldContainer[_log_pb2.Range]
    lease_seconds: float
    revoked: _containers.RepeatedCompositeFieldContainer[_log_pb2.Range]
    message: str
    def __init__(self, leased: _Optional[_Iterable[_Union[_log_pb2.Range, _Mapping]]] = ..., lease_seconds: _Optional[float] = ..., revoked: _Optional[_Iterable[_Union[_log_pb2.Range, _Mapping]]] = ..., message: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("run_id", "version", "wait_seconds")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WAIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    version: int
    wait_seconds: float
    def __init__(self, run_id: _Optional[bytes] = ..., version: _Optional[int] = ..., wait_seconds: _Optional[float] = ...) -> None: ...

class WatchReply(_message.Message):
    __slots__ = ("version", "term", "head_round", "head_hash", "head_digest", "closing", "closes_in_seconds", "announced", "sources", "snapshot_round", "state_words", "paused", "finished", "round_tokens", "tokens_per_second", "peers", "leader", "leader_addresses")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    HEAD_ROUND_FIELD_NUMBER: _ClassVar[int]
    HEAD_HASH_FIELD_NUMBER: _ClassVar[int]
    HEAD_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    CLOSES_IN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ANNOUNCED_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_WORDS_FIELD_NUMBER: _ClassVar[int]
    PAUSED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    ROUND_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    LEADER_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    version: int
    term: int
    head_round: int
    head_hash: bytes
    head_digest: bytes
    closing: bool
    closes_in_seconds: float
    announced: _containers.RepeatedCompositeFieldContainer[Announcement]
    sources: _containers.RepeatedScalarFieldContainer[bytes]
    snapshot_round: int
    state_words: str
    paused: bool
    finished: bool
    round_tokens: int
    tokens_per_second: float
    peers: int
    leader: bytes
    leader_addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., term: _Optional[int] = ..., head_round: _Optional[int] = ..., head_hash: _Optional[bytes] = ..., head_digest: _Optional[bytes] = ..., closing: bool = ..., closes_in_seconds: _Optional[float] = ..., announced: _Optional[_Iterable[_Union[Announcement, _Mapping]]] = ..., sources: _Optional[_Iterable[bytes]] = ..., snapshot_round: _Optional[int] = ..., state_words: _Optional[str] = ..., paused: bool = ..., finished: bool = ..., round_tokens: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., peers: _Optional[int] = ..., leader: _Optional[bytes] = ..., leader_addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class Standing(_message.Message):
    __slots__ = ("run_id", "head_round", "head_hash", "tokens", "term", "leader", "leader_addresses", "silent_seconds", "data_cursor")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    HEAD_ROUND_FIELD_NUMBER: _ClassVar[int]
    HEAD_HASH_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    LEADER_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    SILENT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DATA_CURSOR_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    head_round: int
    head_hash: bytes
    tokens: int
    term: int
    leader: bytes
    leader_addresses: _containers.RepeatedScalarFieldContainer[str]
    silent_seconds: float
    data_cursor: int
    def __init__(self, run_id: _Optional[bytes] = ..., head_round: _Optional[int] = ..., head_hash: _Optional[bytes] = ..., tokens: _Optional[int] = ..., term: _Optional[int] = ..., leader: _Optional[bytes] = ..., leader_addresses: _Optional[_Iterable[str]] = ..., silent_seconds: _Optional[float] = ..., data_cursor: _Optional[int] = ...) -> None: ...

class HandoverRequest(_message.Message):
    __slots__ = ("run_id", "head_round")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    HEAD_ROUND_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    head_round: int
    def __init__(self, run_id: _Optional[bytes] = ..., head_round: _Optional[int] = ...) -> None: ...

class Announcement(_message.Message):
    __slots__ = ("payload_hash", "payload_bytes", "peer")
    PAYLOAD_HASH_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    payload_hash: bytes
    payload_bytes: int
    peer: bytes
    def __init__(self, payload_hash: _Optional[bytes] = ..., payload_bytes: _Optional[int] = ..., peer: _Optional[bytes] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("contribution",)
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    contribution: _log_pb2.Signed
    def __init__(self, contribution: _Optional[_Union[_log_pb2.Signed, _Mapping]] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("refusal", "fetched")
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FIELD_NUMBER: _ClassVar[int]
    refusal: str
    fetched: bool
    def __init__(self, refusal: _Optional[str] = ..., fetched: bool = ...) -> None: ...

class RecordsRequest(_message.Message):
    __slots__ = ("run_id", "first_round", "count")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROUND_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    first_round: int
    count: int
    def __init__(self, run_id: _Optional[bytes] = ..., first_round: _Optional[int] = ..., count: _Optional[int] = ...) -> None: ...

class RecordsReply(_message.Message):
    __slots__ = ("records",)
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[_log_pb2.Signed]
    def __init__(self, records: _Optional[_Iterable[_Union[_log_pb2.Signed, _Mapping]]] = ...) -> None: ...

class BlobRequest(_message.Message):
    __slots__ = ("hash", "offset", "length")
    HASH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    hash: bytes
    offset: int
    length: int
    def __init__(self, hash: _Optional[bytes] = ..., offset: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class BlobsRequest(_message.Message):
    __slots__ = ("hashes", "sizes")
    HASHES_FIELD_NUMBER: _ClassVar[int]
    SIZES_FIELD_NUMBER: _ClassVar[int]
    hashes: _containers.RepeatedScalarFieldContainer[bytes]
    sizes: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, hashes: _Optional[_Iterable[bytes]] = ..., sizes: _Optional[_Iterable[int]] = ...) -> None: ...

class HeadPointer(_message.Message):
    __slots__ = ("term", "round", "hash", "addresses")
    TERM_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    HASH_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    term: int
    round: int
    hash: bytes
    addresses: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, term: _Optional[int] = ..., round: _Optional[int] = ..., hash: _Optional[bytes] = ..., addresses: _Optional[_Iterable[str]] = ...) -> None: ...

class ManifestRequest(_message.Message):
    __slots__ = ("run_id", "round")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    round: int
    def __init__(self, run_id: _Optional[bytes] = ..., round: _Optional[int] = ...) -> None: ...

class RedeemRequest(_message.Message):
    __slots__ = ("run_id", "token")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    token: str
    def __init__(self, run_id: _Optional[bytes] = ..., token: _Optional[str] = ...) -> None: ...

class RedeemReply(_message.Message):
    __slots__ = ("admission",)
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    admission: _log_pb2.Signed
    def __init__(self, admission: _Optional[_Union[_log_pb2.Signed, _Mapping]] = ...) -> None: ...
