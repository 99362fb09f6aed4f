"""What is inside the envelopes: the payload of each kind, as structs and as deterministic CBOR.

Signatures and times are the envelope's; who may send what is decided by those who receive.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

from federation.wire import cbor
from federation.wire.envelope import Kind, Rejected
from federation.wire.sizes import SIZES

__all__ = [
    "DEEPEST",
    "MAX_HOPS",
    "MOST",
    "MOST_FILES",
    "MOST_FOLLOWED",
    "SIGNED",
    "Cancel",
    "Capabilities",
    "Carried",
    "Chunk",
    "Collect",
    "Extra",
    "Fetch",
    "Follow",
    "Heard",
    "Hello",
    "Introduction",
    "Introductions",
    "Join",
    "Line",
    "News",
    "Offer",
    "Outcome",
    "Outcomes",
    "Parcel",
    "Parcels",
    "Pass",
    "Passed",
    "Poll",
    "Receipt",
    "Reply",
    "Said",
    "Say",
    "SignedRefusal",
    "Submit",
    "Succession",
    "Successor",
    "Welcome",
    "dump",
    "load",
    "most_items",
]

MOST = 86_400 - 3600  # seconds; a card is issued a day ago

MAX_HOPS = 4  # that any policy may allow

_DEPTH = 4
DEEPEST = 3  # hops that an introduction may have come
Pid = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}\\Z")]
Attempt = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Count = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
Text = Annotated[str, msgspec.Meta(max_length=200)]
Name = Annotated[bytes, msgspec.Meta(min_length=1, max_length=16)]
Key = Annotated[bytes, msgspec.Meta(min_length=65, max_length=65)]
Wait = Annotated[int, msgspec.Meta(ge=0, le=30)]
Big = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
# SHA-256 of the origin's own sealed submission, b"" where it is not known.
Asked = Annotated[bytes, msgspec.Meta(max_length=32)]
MOST_FOLLOWED = 128  # processes in one poll
MOST_FILES = 2000  # that one submission needs
# Refusals at these are signed: of a process that may go elsewhere, and of whose clock is off.
SIGNED = ("/v2/submit", "/v1/hello")
M = TypeVar("M", bound=msgspec.Struct)
_NAMES = {"SignedRefusal": "REFUSAL"}  # payloads that are called otherwise than their kind
_PART_ITEMS = 4_096  # values of what is encoded for itself inside of a message


class Succession(msgspec.Struct, frozen=True):
    """The colony with the public key `old` goes on with the key `new`."""

    old: Key
    new: Key


class Successor(msgspec.Struct, frozen=True):
    """The same succession, sealed by both keys: it proves itself."""

    by_old: Annotated[bytes, msgspec.Meta(max_length=2048)]
    by_new: Annotated[bytes, msgspec.Meta(max_length=2048)]


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """I am here; my signed card. An answer repeats the `nonce` that it answers.

    It also tells the time by the answerer's `clock`, and, if that is later, the `latest` that it
    remembers and judges by; both in seconds. `successors` tell of the keys before this one.
    """

    card: bytes
    nonce: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    clock: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = 0
    latest: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = 0
    successors: Annotated[list[Successor], msgspec.Meta(max_length=8)] = []


Nonce = Annotated[bytes, msgspec.Meta(min_length=16, max_length=32)]


class Join(msgspec.Struct, frozen=True):
    """Here is my card; I was invited. First only a `nonce`, then also `answer`, the inviter's.

    `proof` shows that the secret of the invitation is known.
    """

    card: bytes
    invitation: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}\\Z")]
    nonce: Nonce
    answer: bytes = b""
    proof: bytes = b""


class Welcome(msgspec.Struct, frozen=True):
    """The inviter's `nonce`, and once the joiner is trusted the inviter's `proof`."""

    nonce: Nonce
    proof: bytes = b""


Checksum = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}\\Z")]


class Carried(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file that a submission needs, as the origin has it under `label` and `name`.

    `mount` is "d" for one of its directories, or the place of the snapshot that it is in. `ref`,
    JSON, tells where the bytes are if the origin itself has none.
    """

    mount: Annotated[str, msgspec.Meta(pattern="^(d|[0-9]{1,3})\\Z")]
    label: str
    name: str
    size: Big
    checksum: str
    ref: bytes = b""


class Fetch(msgspec.Struct, frozen=True):
    """Give me bytes of a file that you sent a process of yours with, from `offset` on."""

    pid: Pid
    attempt: Attempt
    checksum: Checksum
    offset: Big


class Chunk(msgspec.Struct, frozen=True):
    """Bytes of a file; none at its end."""

    checksum: Checksum
    offset: Big
    data: bytes


class Submit(msgspec.Struct, frozen=True, omit_defaults=True):
    """Run this: `pid` is the sender's process id, `spec` the function spec as JSON bytes.

    `hops` is how many the origin allows, `path` the ids of the colonies before the sender. A relay
    has no spec of its own: `inner` is the sealed submission that it was sent, `target` who is
    meant if not the receiver, `keys` the public keys of those in `path`. `input`, a JSON array, is
    what a node of a workflow gets from those before it, and `files` what its file mounts hold.
    """

    pid: Pid
    attempt: Attempt
    spec: bytes
    initiator: str
    hops: int
    path: list[str]
    target: Annotated[str, msgspec.Meta(max_length=400)] = ""
    inner: bytes = b""
    keys: Annotated[list[bytes], msgspec.Meta(max_length=4)] = []
    input: bytes = b""
    files: Annotated[list[Carried], msgspec.Meta(max_length=MOST_FILES)] | None = None


class Cancel(msgspec.Struct, frozen=True):
    """Do not run this, or stop."""

    pid: Pid
    attempt: Attempt


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """`remote` is the executing colony's id of it, "" if it never was there.

    `asked` is the SHA-256 of the sealed submission of the colony `origin`, where the process began:
    what was received, and not only under which id. Both are empty if it never was there.
    """

    pid: Pid
    attempt: Attempt
    status: Literal["accepted", "cancelled", "already_closed"]
    remote: str
    asked: Asked = b""
    origin: str = ""


class Follow(msgspec.Struct, frozen=True, omit_defaults=True):
    """How much I know of a process of mine that you run.

    `version` is that of the latest news, `line` the time (Unix ns, yours) of the last log line,
    `attributes` how many, `output` the digest of the output, `heard` how many entries of each
    channel were looked at.
    """

    pid: Pid
    attempt: Attempt
    version: Big = 0
    line: Big = 0
    attributes: Count = 0
    output: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    heard: Annotated[dict[Text, Count], msgspec.Meta(max_length=100)] = {}


class Line(msgspec.Struct, frozen=True):
    """A log line; `at` in Unix ns."""

    at: Big
    executor: Text
    message: Annotated[str, msgspec.Meta(max_length=70_000)]


class Extra(msgspec.Struct, frozen=True):
    """An attribute that was added; `kind` as upstream numbers it."""

    key: str
    value: str
    kind: Annotated[int, msgspec.Meta(ge=0, le=16)]


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message in a channel, with its place there."""

    name: Text
    place: Count
    payload: bytes
    type: Text = ""
    sequence: int = 0
    inreplyto: int = 0


class News(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is new of a process since what a `Follow` told, which each field takes further.

    `executor` has it since `start` (Unix ns) if it is running. Of `attributes` in all, `added` are
    the last ones. `out`, JSON, is the output so far, if it is another. `said` are messages for the
    initiator, and `heard` how many entries of each channel that covers. With `more`, there is more.
    """

    pid: Pid
    attempt: Attempt
    state: Annotated[int, msgspec.Meta(ge=0, le=4)] = 0
    executor: Text = ""
    start: Big = 0
    version: Big = 0
    lines: Annotated[list[Line], msgspec.Meta(max_length=100)] = []
    attributes: Count = 0
    added: Annotated[list[Extra], msgspec.Meta(max_length=100)] = []
    output: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    out: bytes = b""
    heard: Annotated[dict[Text, Count], msgspec.Meta(max_length=100)] = {}
    said: Annotated[list[Said], msgspec.Meta(max_length=100)] = []
    more: bool = False


class Say(msgspec.Struct, frozen=True, omit_defaults=True):
    """Messages for a channel of a process of mine that you run, in their order.

    `start` is how many entries of my channel I told you of, or passed over, before; with these it
    is `after`.
    """

    pid: Pid
    attempt: Attempt
    name: Text
    start: Count
    after: Count
    said: Annotated[list[Said], msgspec.Meta(max_length=100)] = []


class Heard(msgspec.Struct, frozen=True):
    """So many entries of that channel of yours have I been told of."""

    pid: Pid
    attempt: Attempt
    name: Text
    after: Count


class Poll(msgspec.Struct, frozen=True, omit_defaults=True):
    """Give me outcomes, waiting up to `wait` seconds; `ack` names those I have kept.

    And news of those that I `follow`, which are all that I have at yours if it is `whole`.
    """

    wait: Annotated[int, msgspec.Meta(ge=0, le=30)]
    ack: Annotated[list[Pid], msgspec.Meta(max_length=100)]
    follow: Annotated[list[Follow], msgspec.Meta(max_length=MOST_FOLLOWED)] | None = None
    whole: bool = False


class Outcomes(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sealed outcomes, some of those owed, and if asked for, `news`: each one encoded for itself.

    `cut`: there may be more news than fit.
    """

    outcomes: list[bytes]
    news: Annotated[list[bytes], msgspec.Meta(max_length=512)] | None = None
    cut: bool = False


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a forwarded process ended: `state` as upstream numbers it, `out` JSON, times Unix ns.

    A relay's carries the sealed outcome `below` it, which alone has the output, and the public
    `keys` of all whose outcomes are in there. `asked` is the SHA-256 of the sealed submission of
    the colony `origin`, where the process began: all outcomes of a chain answer that very message.
    An outcome of version 1 of the protocol has neither, and is read only where it is stored.
    """

    pid: Pid
    attempt: Attempt
    state: Annotated[int, msgspec.Meta(ge=2, le=4)]
    out: bytes
    errors: list[str]
    localpid: str
    executor: str
    start: int
    end: int
    below: bytes = b""
    keys: Annotated[list[bytes], msgspec.Meta(max_length=4)] = []
    asked: Asked = b""
    origin: str = ""


class Offer(msgspec.Struct, frozen=True):
    """What a colony has of one executor type now; `functions` are names or globs."""

    functions: Annotated[list[Text], msgspec.Meta(max_length=256)] = []
    executors: Count = 0
    free: Count = 0  # polls that wait for work
    waiting: Count = 0
    running: Count = 0


class Capabilities(msgspec.Struct, frozen=True):
    """What the sender offers the receiver. Of two of one sender, the one with the higher `seq`.

    `labels` are globs, empty for all; `limits` are bytes of a `body`, and how many more processes
    of the receiver's may wait (`room`), each absent for none. `clock` is the sender's, in seconds.
    """

    seq: Annotated[int, msgspec.Meta(ge=0)]
    accepting: bool = True
    types: Annotated[dict[Text, Offer], msgspec.Meta(max_length=64)] = {}
    labels: Annotated[list[Text], msgspec.Meta(max_length=64)] = []
    limits: Annotated[dict[Text, int], msgspec.Meta(max_length=16)] = {}
    clock: int = 0


class Introduction(msgspec.Struct, frozen=True):
    """A colony that the sender trusts, by its signed card. `hops`: 1 if its owner said so."""

    card: Annotated[bytes, msgspec.Meta(max_length=8192)]
    hops: Annotated[int, msgspec.Meta(ge=1, le=DEEPEST)]


class Introductions(msgspec.Struct, frozen=True):
    """All whom the sender introduces: what a later message has no more is introduced no more.

    Of two messages of one sender, the one with the higher `seq` is the later one.
    """

    known: Annotated[list[Introduction], msgspec.Meta(max_length=64)]
    seq: Big


class Reply(msgspec.Struct, frozen=True):
    """The answer to a parcel as HTTP would give it; `after` is its header retry-after.

    `data` may come in parts: with `more`, another follows.
    """

    id: Name
    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    after: Text
    data: bytes
    more: bool = False


class Collect(msgspec.Struct, frozen=True):
    """I can't be connected to: give me what is for me, within `wait` seconds, and take these."""

    wait: Wait
    answers: Annotated[list[Reply], msgspec.Meta(max_length=16)]


class Parcel(msgspec.Struct, frozen=True):
    """A message for the receiver, posted to `path`; it may think `wait` seconds about it."""

    id: Name
    path: Text
    body: bytes
    wait: Wait


class Parcels(msgspec.Struct, frozen=True):
    """What is held for who polls."""

    parcels: Annotated[list[Parcel], msgspec.Meta(max_length=64)]


class Pass(msgspec.Struct, frozen=True):
    """Give this to the colony `to`, which polls you, and me its answer."""

    to: Pid
    path: Text
    body: bytes
    wait: Wait


class Passed(msgspec.Struct, frozen=True):
    """What that colony answered."""

    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    after: Text
    data: bytes


class SignedRefusal(msgspec.Struct, frozen=True):
    """The message whose SHA-256 is `digest`, posted to `path`, was not taken: nothing came of it.

    At another path the same bytes may well have been. `clock` and `latest` as in a hello. `kept`:
    no copy of it was ever taken, and none will be, whoever brings it.
    """

    code: str
    message: str
    digest: bytes
    clock: Count = 0
    latest: Count = 0
    path: Text = ""
    kept: bool = False


def dump(message: msgspec.Struct) -> bytes:
    """Encode a payload."""
    return cbor.encode(msgspec.to_builtins(message, builtin_types=(bytes,)))


def load(payload: bytes, kind: type[M], *, items: int = 0) -> M:
    """Decode a payload of at most `items` values, else as many as its kind may have.

    Raises Rejected (malformed), which names the field.
    """
    try:
        return _load(payload, kind, items or most_items(kind))
    except (cbor.CborError, msgspec.ValidationError) as error:
        raise Rejected("malformed", f"payload: {error}") from error


def _load(payload: bytes, kind: type[M], items: int) -> M:
    value = cbor.decode(payload, depth=_DEPTH, items=items)
    # Bytes are bytes: never text in base64, which would be a second encoding of a value.
    return msgspec.convert(value, kind, builtin_types=(bytes,))


def most_items(kind: type[msgspec.Struct]) -> int:
    """How many values a payload may have, from the table of `sizes`."""
    named = Kind.__members__.get(_NAMES.get(kind.__name__, kind.__name__.upper()))
    return SIZES[named].items if named is not None else _PART_ITEMS
