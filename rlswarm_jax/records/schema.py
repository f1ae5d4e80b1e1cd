"""What nodes tell each other, as bounded, versioned, canonically encoded records.

The encoding is MessagePack of fixed-order arrays. Bytes decode only if re-encoding gives the same bytes, so a
record has one form and its SHA-256 is its name.
"""

import hashlib
import math
from typing import Annotated, Final, Literal, get_args

import msgspec
import numpy as np
from msgspec import Meta

from rlswarm_jax.identity import AUTHOR_BYTES

VERSION = 4
ANNOUNCING = 5  # the version of a record that announces whose place its author takes, too
MAX_ROTATIONS = 4  # keys before the present one
MAX_RECORD_BYTES = 1 << 20
MAX_GROUPS = 64
MAX_GROUP_SIZE = 64
MAX_TOKENS = 8192
MAX_TEXT = 65_536
MAX_NAME = 64
MAX_VERDICTS = 16
BEACON_TAG = 8  # bytes
Finding = Literal["produced", "not produced", "withheld", "undecided"]  # of an audit
PRODUCED: Final = "produced"
NOT_PRODUCED: Final = "not produced"
WITHHELD: Final = "withheld"
UNDECIDED: Final = "undecided"
FINDINGS: tuple[Finding, ...] = get_args(Finding)
ANSWER, CRITIQUE, REVISE = STAGES = ("answer", "critique", "revise")  # of a round, in order

U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
U63 = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
Name = Annotated[str, Meta(max_length=MAX_NAME)]
Packed = Annotated[bytes, Meta(max_length=4 * MAX_TOKENS)]  # little-endian int32 or float32


class RecordError(ValueError):
    """A record that is not used. `cause` is one of `CAUSES`, the name it is counted under.

    version: which one it says it has, if that is the cause.
    """

    def __init__(self, cause: str, detail: str, version: int | None = None):
        assert cause in CAUSES, cause
        super().__init__(f"{cause}: {detail}")
        self.cause, self.version = cause, version


CAUSES = (
    "undecodable",  # not a record of this version within its bounds
    "another version",  # it says that it is one of another version
    "not canonical",  # decodes, but is not the one encoding of what it says
    "bad signature",
    "foreign sender",  # sent in a message of someone else than its author
    "unavailable",  # announced, but not to be had from whoever announced it
    "wrong swarm",
    "own record",  # an echo of what this node published
    "duplicate",
    "equivocation",  # a second record for the same (author, round, stage)
    "false rotation",  # it names a key before its author's that did not give its place to them
    "retired key",  # its author has announced another key, to speak from an earlier round on
    "unknown stage",
    "out of window",  # a round too far behind, or after the last
    "overflow",  # more records than a node keeps
    "unknown beacon",  # made under a beacon of the chain that this node has not heard of, or under none
    "foreign problem",  # a problem this (author, round, index) does not have
    "unknown task",  # this node does not have the task, its version or its data
    "unknown prompt",  # another version of the prompt format, or another game
    "unknown parent",  # it answers to a record that this node does not have
    "wrong parents",  # it answers to records that the rules of the game would not have shown its author
    "false vote",  # not what most of the critiques beside it name, or in a stage that has none
    "text mismatch",  # the text is not what the token ids decode to
    "misshapen group",  # completions of the wrong number or length
)


class Completion(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """tokens: int32 ids, the end-of-sequence token included. logprobs: float32, the author's behaviour log-probs."""

    tokens: Packed
    logprobs: Packed
    text: Annotated[str, Meta(max_length=MAX_TEXT)]

    @property
    def tokens_T(self) -> np.ndarray:
        return np.frombuffer(self.tokens, "<i4")

    @property
    def logprobs_T(self) -> np.ndarray:
        return np.frombuffer(self.logprobs, "<f4")


class Group(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """G completions of one prompt. The prompt itself does not travel: task, seed and parents give it.

    parents: content hashes of the records whose answers and critiques are shown in it, in that order. vote: of a
    critic, the number of the answer shown that they find best, 0 for none of them.
    """

    task: Name
    task_fingerprint: Name
    index: U32  # of the prompt among the author's in this round and stage
    problem_seed: U63
    parents: Annotated[list[Hash], Meta(max_length=MAX_GROUPS)]
    vote: Annotated[int, Meta(ge=0, le=MAX_GROUPS)] | None
    completions: Annotated[list[Completion], Meta(min_length=2, max_length=MAX_GROUP_SIZE)]


class Verdict(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """What an auditor found when it replayed a group with the weights that its record names; anybody can repeat it.

    record: content hash. index: of the group. bits: by how much a key is told from others, sum over the group.
    statistic: of `audit.statistics`. withheld: the author did not show the weights.
    """

    record: Hash
    index: U32
    finding: Finding
    tokens: U32
    bits: float
    statistic: float


class Record(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """All that an author says in one (swarm, round, stage)."""

    version: U32
    swarm: Name
    author: Annotated[bytes, Meta(min_length=AUTHOR_BYTES, max_length=AUTHOR_BYTES)]
    round: U32
    stage: Name
    beacon: Annotated[bytes, Meta(max_length=BEACON_TAG)]  # first bytes of the chain's; empty without a chain
    prompt_format: Name
    policy_version: U32  # updates the author's weights have had
    weights: Hash  # that sampled it: `qwen.tensors_hash` of them in the dtype that samples
    tokenizer_fingerprint: Name
    temperature: float
    groups: Annotated[list[Group], Meta(max_length=MAX_GROUPS)]
    verdicts: Annotated[list[Verdict], Meta(max_length=MAX_VERDICTS)]


class Rotation(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A key's last word: another one speaks in its place, from a round on. Whose that is follows from where it stands.

    signature: by `old`, see `records.rotations`.
    """

    old: Annotated[bytes, Meta(min_length=AUTHOR_BYTES, max_length=AUTHOR_BYTES)]
    from_round: U32
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


class Announcing(Record, array_like=True, frozen=True, forbid_unknown_fields=True):
    """A record of an author who had other keys. rotations: each to the next one's `old`, the last to the author."""

    rotations: Annotated[list[Rotation], Meta(min_length=1, max_length=MAX_ROTATIONS)]


class Envelope(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The bytes that travel: an encoded `Record` and its author's signature."""

    payload: Annotated[bytes, Meta(max_length=MAX_RECORD_BYTES)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


_record_decoder = msgspec.msgpack.Decoder(Record)
_announcing_decoder = msgspec.msgpack.Decoder(Announcing)
_ANNOUNCING_HEAD = bytes([0x90 + len(Announcing.__struct_fields__)])  # of a MessagePack array of so many elements


def encode(record: Record) -> bytes:
    """The canonical bytes of a record. Raises RecordError if it is out of bounds: nothing invalid is ever sent."""
    try:
        raw = msgspec.msgpack.encode(record)
    except (UnicodeEncodeError, OverflowError) as error:  # a lone surrogate, an integer beyond 64 bits
        raise RecordError("undecodable", str(error)) from None
    decode(raw)
    return raw


def decode(raw: bytes) -> Record:
    """The record of canonical bytes. Raises RecordError("undecodable" | "another version" | "not canonical")."""
    if len(raw) > MAX_RECORD_BYTES:
        raise RecordError("undecodable", f"{len(raw)} bytes, at most {MAX_RECORD_BYTES} are read")
    version = _version_of(raw)
    if version is not None and version not in (VERSION, ANNOUNCING):
        raise RecordError("another version", f"{version}, this node reads {VERSION} and {ANNOUNCING}", version)
    announces = raw[:1] == _ANNOUNCING_HEAD
    try:
        record = (_announcing_decoder if announces else _record_decoder).decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RecordError("undecodable", str(error)) from None
    if record.version != (ANNOUNCING if announces else VERSION):
        raise RecordError("undecodable", f"version {record.version} has other fields")
    if not (math.isfinite(record.temperature) and record.temperature > 0):
        raise RecordError("undecodable", f"temperature {record.temperature} is not a positive number")
    if not all(math.isfinite(x) for verdict in record.verdicts for x in (verdict.bits, verdict.statistic)):
        raise RecordError("undecodable", "a verdict's figures are not finite")
    _check([completion for group in record.groups for completion in group.completions])
    if msgspec.msgpack.encode(record) != raw:
        raise RecordError("not canonical", "decoding and encoding again gives other bytes")
    return record


def _version_of(raw: bytes) -> int | None:
    """Which version a record says it has, whatever else it is: of each, a MessagePack array that begins with it."""
    start = 3 if raw[:1] == b"\xdc" else 1 if raw[:1] and raw[0] >> 4 == 9 else 0
    head = raw[start : start + 1]
    if not start or not head:
        return None
    if head[0] < 0x80:
        return head[0]
    size = {0xCC: 1, 0xCD: 2, 0xCE: 4}.get(head[0], 0)
    number = raw[start + 1 : start + 1 + size]
    return int.from_bytes(number) if size and len(number) == size else None


def content_hash(payload: bytes) -> bytes:
    """A record's name: SHA-256 of its canonical bytes."""
    return hashlib.sha256(payload).digest()


def _check(completions: list[Completion]) -> None:
    """All completions at once: a NumPy call for each would cost more than the rest of decoding."""
    for completion in completions:
        if len(completion.tokens) != len(completion.logprobs) or len(completion.tokens) % 4 or not completion.tokens:
            raise RecordError("undecodable", "token ids and log-probs must be equally many, at least one")
    if (np.frombuffer(b"".join(c.tokens for c in completions), "<i4") < 0).any():
        raise RecordError("undecodable", "a token id is negative")
    logprobs = np.frombuffer(b"".join(c.logprobs for c in completions), "<f4")
    if not (np.isfinite(logprobs) & (logprobs <= 0)).all():
        raise RecordError("undecodable", "a log-prob is positive or not finite")
