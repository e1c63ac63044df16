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
    __slots__ = ("run_id", "genesis", "swarm_addresses", "version", "spec", "coordinator")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    GENESIS_FIELD_NUMBER: _ClassVar[int]
    SWARM_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    genesis: _log_pb2.Signed
    swarm_addresses: _containers.RepeatedScalarFieldContainer[str]
    version: str
    spec: str
    coordinator: bytes
    def __init__(self, run_id: _Optional[bytes] = ..., genesis: _Optional[_Union[_log_pb2.Signed, _Mapping]] = ..., swarm_addresses: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ..., spec: _Optional[str] = ..., coordinator: _Optional[bytes] = ...) -> None: ...

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

class ListRoundsRequest(_message.Message):
    __slots__ = ("run_id", "page_size", "page_token")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    page_size: int
    page_token: str
    def __init__(self, run_id: _Optional[bytes] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class Round(_message.Message):
    __slots__ = ("round", "time_seconds", "tokens", "total_tokens", "loss", "contributions", "refused", "payload_bytes", "sequencer", "term", "final", "opened", "closing", "published", "applied")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    SEQUENCER_FIELD_NUMBER: _ClassVar[int]
    TERM_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    CLOSING_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    round: int
    time_seconds: float
    tokens: int
    total_tokens: int
    loss: float
    contributions: int
    refused: int
    payload_bytes: int
    sequencer: str
    term: int
    final: bool
    opened: float
    closing: float
    published: float
    applied: float
    def __init__(self, round: _Optional[int] = ..., time_seconds: _Optional[float] = ..., tokens: _Optional[int] = ..., total_tokens: _Optional[int] = ..., loss: _Optional[float] = ..., contributions: _Optional[int] = ..., refused: _Optional[int] = ..., payload_bytes: _Optional[int] = ..., sequencer: _Optional[str] = ..., term: _Optional[int] = ..., final: bool = ..., opened: _Optional[float] = ..., closing: _Optional[float] = ..., published: _Optional[float] = ..., applied: _Optional[float] = ...) -> None: ...

class ListRoundsReply(_message.Message):
    __slots__ = ("rounds", "next_page_token")
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    rounds: _containers.RepeatedCompositeFieldContainer[Round]
    next_page_token: str
    def __init__(self, rounds: _Optional[_Iterable[_Union[Round, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

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
    __slots__ = ("peer_id", "name", "credit_tokens", "contributions", "refused", "last_refusal", "first_round", "last_round", "team", "pending_tokens", "voided_tokens", "rounds_sequenced", "uptime_seconds", "bytes_served")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CREDIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    LAST_REFUSAL_FIELD_NUMBER: _ClassVar[int]
    FIRST_ROUND_FIELD_NUMBER: _ClassVar[int]
    LAST_ROUND_FIELD_NUMBER: _ClassVar[int]
    TEAM_FIELD_NUMBER: _ClassVar[int]
    PENDING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VOIDED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_SEQUENCED_FIELD_NUMBER: _ClassVar[int]
    UPTIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BYTES_SERVED_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    name: str
    credit_tokens: int
    contributions: int
    refused: int
    last_refusal: str
    first_round: int
    last_round: int
    team: str
    pending_tokens: int
    voided_tokens: int
    rounds_sequenced: int
    uptime_seconds: float
    bytes_served: int
    def __init__(self, peer_id: _Optional[str] = ..., name: _Optional[str] = ..., credit_tokens: _Optional[int] = ..., contributions: _Optional[int] = ..., refused: _Optional[int] = ..., last_refusal: _Optional[str] = ..., first_round: _Optional[int] = ..., last_round: _Optional[int] = ..., team: _Optional[str] = ..., pending_tokens: _Optional[int] = ..., voided_tokens: _Optional[int] = ..., rounds_sequenced: _Optional[int] = ..., uptime_seconds: _Optional[float] = ..., bytes_served: _Optional[int] = ...) -> None: ...

class GetLedgerReply(_message.Message):
    __slots__ = ("rows", "total_tokens", "next_page_token")
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[LedgerRow]
    total_tokens: int
    next_page_token: str
    def __init__(self, rows: _Optional[_Iterable[_Union[LedgerRow, _Mapping]]] = ..., total_tokens: _Optional[int] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetTeamsRequest(_message.Message):
    __slots__ = ("run_id", "page_size", "page_token")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    page_size: int
    page_token: str
    def __init__(self, run_id: _Optional[bytes] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class Team(_message.Message):
    __slots__ = ("team", "credit_tokens", "contributions", "peers")
    TEAM_FIELD_NUMBER: _ClassVar[int]
    CREDIT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    team: str
    credit_tokens: int
    contributions: int
    peers: int
    def __init__(self, team: _Optional[str] = ..., credit_tokens: _Optional[int] = ..., contributions: _Optional[int] = ..., peers: _Optional[int] = ...) -> None: ...

class GetTeamsReply(_message.Message):
    __slots__ = ("teams", "next_page_token")
    TEAMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    teams: _containers.RepeatedCompositeFieldContainer[Team]
    next_page_token: str
    def __init__(self, teams: _Optional[_Iterable[_Union[Team, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetPeerRequest(_message.Message):
    __slots__ = ("run_id", "peer_id")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    peer_id: str
    def __init__(self, run_id: _Optional[bytes] = ..., peer_id: _Optional[str] = ...) -> None: ...

class GetPeerReply(_message.Message):
    __slots__ = ("account", "status", "hindrances", "refusals", "revoked")
    ACCOUNT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    HINDRANCES_FIELD_NUMBER: _ClassVar[int]
    REFUSALS_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    account: LedgerRow
    status: PeerStatus
    hindrances: _containers.RepeatedScalarFieldContainer[str]
    refusals: _containers.RepeatedCompositeFieldContainer[Refusal]
    revoked: bool
    def __init__(self, account: _Optional[_Union[LedgerRow, _Mapping]] = ..., status: _Optional[_Union[PeerStatus, _Mapping]] = ..., hindrances: _Optional[_Iterable[str]] = ..., refusals: _Optional[_Iterable[_Union[Refusal, _Mapping]]] = ..., revoked: bool = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("round", "time_seconds", "tokens", "reason")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    round: int
    time_seconds: float
    tokens: int
    reason: str
    def __init__(self, round: _Optional[int] = ..., time_seconds: _Optional[float] = ..., tokens: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ListContributionsRequest(_message.Message):
    __slots__ = ("run_id", "peer_id", "round", "page_size", "page_token")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    peer_id: str
    round: int
    page_size: int
    page_token: str
    def __init__(self, run_id: _Optional[bytes] = ..., peer_id: _Optional[str] = ..., round: _Optional[int] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ContributionRow(_message.Message):
    __slots__ = ("round", "time_seconds", "peer_id", "name", "tokens", "inner_steps", "mean_loss", "norm", "codec", "payload_bytes", "train_seconds", "private_data", "voided_in")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    INNER_STEPS_FIELD_NUMBER: _ClassVar[int]
    MEAN_LOSS_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PRIVATE_DATA_FIELD_NUMBER: _ClassVar[int]
    VOIDED_IN_FIELD_NUMBER: _ClassVar[int]
    round: int
    time_seconds: float
    peer_id: str
    name: str
    tokens: int
    inner_steps: int
    mean_loss: float
    norm: float
    codec: str
    payload_bytes: int
    train_seconds: float
    private_data: str
    voided_in: int
    def __init__(self, round: _Optional[int] = ..., time_seconds: _Optional[float] = ..., peer_id: _Optional[str] = ..., name: _Optional[str] = ..., tokens: _Optional[int] = ..., inner_steps: _Optional[int] = ..., mean_loss: _Optional[float] = ..., norm: _Optional[float] = ..., codec: _Optional[str] = ..., payload_bytes: _Optional[int] = ..., train_seconds: _Optional[float] = ..., private_data: _Optional[str] = ..., voided_in: _Optional[int] = ...) -> None: ...

class ListContributionsReply(_message.Message):
    __slots__ = ("contributions", "next_page_token")
    CONTRIBUTIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    contributions: _containers.RepeatedCompositeFieldContainer[ContributionRow]
    next_page_token: str
    def __init__(self, contributions: _Optional[_Iterable[_Union[ContributionRow, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetReceiptRequest(_message.Message):
    __slots__ = ("run_id", "peer_id", "round")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    peer_id: str
    round: int
    def __init__(self, run_id: _Optional[bytes] = ..., peer_id: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class GetReceiptReply(_message.Message):
    __slots__ = ("receipt",)
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    receipt: _log_pb2.Receipt
    def __init__(self, receipt: _Optional[_Union[_log_pb2.Receipt, _Mapping]] = ...) -> None: ...

class ListCheckpointsRequest(_message.Message):
    __slots__ = ("run_id", "page_size", "page_token")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    page_size: int
    page_token: str
    def __init__(self, run_id: _Optional[bytes] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class Checkpoint(_message.Message):
    __slots__ = ("round", "time_seconds", "location", "size_bytes", "tokens", "eval_loss", "record_hash", "state_digest")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TIME_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LOCATION_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    EVAL_LOSS_FIELD_NUMBER: _ClassVar[int]
    RECORD_HASH_FIELD_NUMBER: _ClassVar[int]
    STATE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    round: int
    time_seconds: float
    location: str
    size_bytes: int
    tokens: int
    eval_loss: float
    record_hash: bytes
    state_digest: bytes
    def __init__(self, round: _Optional[int] = ..., time_seconds: _Optional[float] = ..., location: _Optional[str] = ..., size_bytes: _Optional[int] = ..., tokens: _Optional[int] = ..., eval_loss: _Optional[float] = ..., record_hash: _Optional[bytes] = ..., state_digest: _Optional[bytes] = ...) -> None: ...

class ListCheckpointsReply(_message.Message):
    __slots__ = ("checkpoints", "next_page_token")
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    checkpoints: _containers.RepeatedCompositeFieldContainer[Checkpoint]
    next_page_token: str
    def __init__(self, checkpoints: _Optional[_Iterable[_Union[Checkpoint, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetCheckpointRequest(_message.Message):
    __slots__ = ("run_id", "round")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    round: int
    def __init__(self, run_id: _Optional[bytes] = ..., round: _Optional[int] = ...) -> None: ...

class CheckpointFile(_message.Message):
    __slots__ = ("name", "size_bytes", "sha256", "blake3", "resuming")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    BLAKE3_FIELD_NUMBER: _ClassVar[int]
    RESUMING_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    sha256: bytes
    blake3: bytes
    resuming: bool
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[bytes] = ..., blake3: _Optional[bytes] = ..., resuming: bool = ...) -> None: ...

class GetCheckpointReply(_message.Message):
    __slots__ = ("checkpoint", "files")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    checkpoint: Checkpoint
    files: _containers.RepeatedCompositeFieldContainer[CheckpointFile]
    def __init__(self, checkpoint: _Optional[_Union[Checkpoint, _Mapping]] = ..., files: _Optional[_Iterable[_Union[CheckpointFile, _Mapping]]] = ...) -> None: ...

class DownloadCheckpointRequest(_message.Message):
    __slots__ = ("run_id", "round", "name", "offset")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    round: int
    name: str
    offset: int
    def __init__(self, run_id: _Optional[bytes] = ..., round: _Optional[int] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class DownloadCheckpointReply(_message.Message):
    __slots__ = ("data", "size_bytes")
    DATA_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    size_bytes: int
    def __init__(self, data: _Optional[bytes] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class Redemption(_message.Message):
    __slots__ = ("run_id", "token")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    token: str
    def __init__(self, run_id: _Optional[bytes] = ..., token: _Optional[str] = ...) -> None: ...

class RedeemInviteRequest(_message.Message):
    __slots__ = ("redemption",)
    REDEMPTION_FIELD_NUMBER: _ClassVar[int]
    redemption: _log_pb2.Signed
    def __init__(self, redemption: _Optional[_Union[_log_pb2.Signed, _Mapping]] = ...) -> None: ...

class RedeemInviteReply(_message.Message):
    __slots__ = ("admission",)
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    admission: _log_pb2.Signed
    def __init__(self, admission: _Optional[_Union[_log_pb2.Signed, _Mapping]] = ...) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InviteRequest(_message.Message):
    __slots__ = ("uses", "valid_seconds", "note")
    USES_FIELD_NUMBER: _ClassVar[int]
    VALID_SECONDS_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    uses: int
    valid_seconds: float
    note: str
    def __init__(self, uses: _Optional[int] = ..., valid_seconds: _Optional[float] = ..., note: _Optional[str] = ...) -> None: ...

class InviteReply(_message.Message):
    __slots__ = ("token",)
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    token: str
    def __init__(self, token: _Optional[str] = ...) -> None: ...

class ListInvitesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class InviteRow(_message.Message):
    __slots__ = ("number", "note", "uses", "admitted", "created_seconds", "expires_seconds", "revoked")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    CREATED_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REVOKED_FIELD_NUMBER: _ClassVar[int]
    number: int
    note: str
    uses: int
    admitted: _containers.RepeatedScalarFieldContainer[str]
    created_seconds: float
    expires_seconds: float
    revoked: bool
    def __init__(self, number: _Optional[int] = ..., note: _Optional[str] = ..., uses: _Optional[int] = ..., admitted: _Optional[_Iterable[str]] = ..., created_seconds: _Optional[float] = ..., expires_seconds: _Optional[float] = ..., revoked: bool = ...) -> None: ...

class ListInvitesReply(_message.Message):
    __slots__ = ("invites", "next_page_token")
    INVITES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    invites: _containers.RepeatedCompositeFieldContainer[InviteRow]
    next_page_token: str
    def __init__(self, invites: _Optional[_Iterable[_Union[InviteRow, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RevokeRequest(_message.Message):
    __slots__ = ("peer_id", "round", "invite", "reason")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    INVITE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    peer_id: str
    round: int
    invite: int
    reason: str
    def __init__(self, peer_id: _Optional[str] = ..., round: _Optional[int] = ..., invite: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FinishRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AdminReply(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: str
    def __init__(self, message: _Optional[str] = ...) -> None: ...

class Ticket(_message.Message):
    __slots__ = ("run_id", "coordinator", "grpc_addresses", "swarm_addresses", "tls", "certificate_hash")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_FIELD_NUMBER: _ClassVar[int]
    GRPC_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    SWARM_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    TLS_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_HASH_FIELD_NUMBER: _ClassVar[int]
    run_id: bytes
    coordinator: bytes
    grpc_addresses: _containers.RepeatedScalarFieldContainer[str]
    swarm_addresses: _containers.RepeatedScalarFieldContainer[str]
    tls: bool
    certificate_hash: bytes
    def __init__(self, run_id: _Optional[bytes] = ..., coordinator: _Optional[bytes] = ..., grpc_addresses: _Optional[_Iterable[str]] = ..., swarm_addresses: _Optional[_Iterable[str]] = ..., tls: bool = ..., certificate_hash: _Optional[bytes] = ...) -> None: ...
