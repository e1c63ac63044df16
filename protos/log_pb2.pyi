from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Signed(_message.Message):
    __slots__ = ("body", "signer", "signature")
    BODY_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    body: bytes
    signer: bytes
    signature: bytes
    def __init__(self, body: _Optional[bytes] = ..., signer: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("start", "stop")
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    start: int
    stop: int
    def __init__(self, start: _Optional[int] = ..., stop: _Optional[int] = ...) -> None: ...

class Contribution(_message.Message):
    __slots__ = ("run_id", "round", "previous_hash", "base_digest", "consumed", "tokens", "inner_steps", "mean_loss", "codec", "payload_hash", "payload_bytes", "train_seconds", "private_data", "name", "team")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_HASH_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    CONSUMED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    INNER_STEPS_FIELD_NUMBER: _ClassVar[int]
    MEAN_LOSS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_HASH_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_DATA_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TEAM_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    round: int
    previous_hash: bytes
    base_digest: bytes
    consumed: _containers.RepeatedCompositeFieldContainer[Range]
    tokens: int
    inner_steps: int
    mean_loss: float
    codec: str
    payload_hash: bytes
    payload_bytes: int
    train_seconds: float
    private_data: str
    name: str
    team: str
    def __init__(self, run_id: _Optional[bytes] = ..., round: _Optional[int] = ..., previous_hash: _Optional[bytes] = ..., base_digest: _Optional[bytes] = ..., consumed: _Optional[_Iterable[_Union[Range, _Mapping]]] = ..., tokens: _Optional[int] = ..., inner_steps: _Optional[int] = ..., mean_loss: _Optional[float] = ..., codec: _Optional[str] = ..., payload_hash: _Optional[bytes] = ..., payload_bytes: _Optional[int] = ..., train_seconds: _Optional[float] = ..., private_data: _Optional[str] = ..., name: _Optional[str] = ..., team: _Optional[str] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("contribution", "norm")
    CONTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    contribution: Signed
    norm: float
    def __init__(self, contribution: _Optional[_Union[Signed, _Mapping]] = ..., norm: _Optional[float] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("peer", "payload_hash", "tokens", "reason")
    PEER_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_HASH_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    peer: bytes
    payload_hash: bytes
    tokens: int
    reason: str
    def __init__(self, peer: _Optional[bytes] = ..., payload_hash: _Optional[bytes] = ..., tokens: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Record(_message.Message):
    __slots__ = ("run_id", "round", "term", "previous_hash", "time_seconds", "base_digest", "accepted", "refused", "data_cursor", "deadline_seconds", "final", "genesis", "equivocations", "admissions", "verdicts")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_HASH_FIELD_NUMBER: _ClassVar[int]
    TIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    DATA_CURSOR_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    GENESIS_FIELD_NUMBER: _ClassVar[int]
    EQUIVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    ADMISSIONS_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    round: int
    term: int
    previous_hash: bytes
    time_seconds: float
    base_digest: bytes
    accepted: _containers.RepeatedCompositeFieldContainer[Accepted]
    refused: _containers.RepeatedCompositeFieldContainer[Refused]
    data_cursor: int
    deadline_seconds: float
    final: bool
    genesis: Genesis
    equivocations: _containers.RepeatedCompositeFieldContainer[Equivocation]
    admissions: _containers.RepeatedCompositeFieldContainer[Signed]
    verdicts: _containers.RepeatedCompositeFieldContainer[Signed]
    def __init__(self, run_id: _Optional[bytes] = ..., round: _Optional[int] = ..., term: _Optional[int] = ..., previous_hash: _Optional[bytes] = ..., time_seconds: _Optional[float] = ..., base_digest: _Optional[bytes] = ..., accepted: _Optional[_Iterable[_Union[Accepted, _Mapping]]] = ..., refused: _Optional[_Iterable[_Union[Refused, _Mapping]]] = ..., data_cursor: _Optional[int] = ..., deadline_seconds: _Optional[float] = ..., final: bool = ..., genesis: _Optional[_Union[Genesis, _Mapping]] = ..., equivocations: _Optional[_Iterable[_Union[Equivocation, _Mapping]]] = ..., admissions: _Optional[_Iterable[_Union[Signed, _Mapping]]] = ..., verdicts: _Optional[_Iterable[_Union[Signed, _Mapping]]] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("run_id", "peer")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    peer: bytes
    def __init__(self, run_id: _Optional[bytes] = ..., peer: _Optional[bytes] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("run_id", "peer", "round", "reason", "payload_hash")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_HASH_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    peer: bytes
    round: int
    reason: str
    payload_hash: bytes
    def __init__(self, run_id: _Optional[bytes] = ..., peer: _Optional[bytes] = ..., round: _Optional[int] = ..., reason: _Optional[str] = ..., payload_hash: _Optional[bytes] = ...) -> None: ...

class Receipt(_message.Message):
    __slots__ = ("genesis", "records", "peer")
    GENESIS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    genesis: Signed
    records: _containers.RepeatedCompositeFieldContainer[Signed]
    peer: bytes
    def __init__(self, genesis: _Optional[_Union[Signed, _Mapping]] = ..., records: _Optional[_Iterable[_Union[Signed, _Mapping]]] = ..., peer: _Optional[bytes] = ...) -> None: ...

class Equivocation(_message.Message):
    __slots__ = ("first", "second")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    first: Signed
    second: Signed
    def __init__(self, first: _Optional[_Union[Signed, _Mapping]] = ..., second: _Optional[_Union[Signed, _Mapping]] = ...) -> None: ...

class Genesis(_message.Message):
    __slots__ = ("spec", "manifest_hash", "state_digest", "parameters", "manifest_bytes")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_HASH_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    spec: bytes
    manifest_hash: bytes
    state_digest: bytes
    parameters: int
    manifest_bytes: int
    def __init__(self, spec: _Optional[bytes] = ..., manifest_hash: _Optional[bytes] = ..., state_digest: _Optional[bytes] = ..., parameters: _Optional[int] = ..., manifest_bytes: _Optional[int] = ...) -> None: ...

class StateManifest(_message.Message):
    __slots__ = ("run_id", "round", "state_bytes", "chunk_hashes")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_HASHES_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    round: int
    state_bytes: int
    chunk_hashes: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, run_id: _Optional[bytes] = ..., round: _Optional[int] = ..., state_bytes: _Optional[int] = ..., chunk_hashes: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SealedFile(_message.Message):
    __slots__ = ("name", "bytes", "sha256", "blake3", "resuming")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    BLAKE3_FIELD_NUMBER: _ClassVar[int]
    RESUMING_FIELD_NUMBER: _ClassVar[int]
    name: str
    bytes: int
    sha256: bytes
    blake3: bytes
    resuming: bool
    def __init__(self, name: _Optional[str] = ..., bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ..., blake3: _Optional[bytes] = ..., resuming: bool = ...) -> None: ...

class CheckpointManifest(_message.Message):
    __slots__ = ("run_id", "round", "record_hash", "state", "tokens", "time_seconds", "eval_loss", "files", "genesis")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    RECORD_HASH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    GENESIS_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    round: int
    record_hash: bytes
    state: StateManifest
    tokens: int
    time_seconds: float
    eval_loss: float
    files: _containers.RepeatedCompositeFieldContainer[SealedFile]
    genesis: Signed
    def __init__(self, run_id: _Optional[bytes] = ..., round: _Optional[int] = ..., record_hash: _Optional[bytes] = ..., state: _Optional[_Union[StateManifest, _Mapping]] = ..., tokens: _Optional[int] = ..., time_seconds: _Optional[float] = ..., eval_loss: _Optional[float] = ..., files: _Optional[_Iterable[_Union[SealedFile, _Mapping]]] = ..., genesis: _Optional[_Union[Signed, _Mapping]] = ...) -> None: ...
