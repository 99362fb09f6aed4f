"""The payloads inside the envelopes: each kind as a struct and as deterministic CBOR.

The envelope has signatures and times. The receivers decide which colony may send a message.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

import msgspec

from federation.wire import cbor
from federation.wire.envelope import Kind, Rejected
from federation.wire.sizes import SIZES

__all__ = [
    "DEEPEST",
    "INVITED_BYTES",
    "MAX_HOPS",
    "MOST",
    "MOST_FILES",
    "MOST_FOLLOWED",
    "MOST_INVITED",
    "MOST_SENDERS",
    "MOST_TOGETHER",
    "SENDER_BYTES",
    "SIGNED",
    "Answer",
    "Cancel",
    "Capabilities",
    "Carried",
    "Chunk",
    "Collect",
    "Dial",
    "Dialled",
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
    "Receipts",
    "Reply",
    "Said",
    "Say",
    "SignedRefusal",
    "Submit",
    "Submits",
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
# SHA-256 of the origin's own signed submission, b"" if it is not known.
Asked = Annotated[bytes, msgspec.Meta(max_length=32)]
MOST_FOLLOWED = 128  # processes in one poll
MOST_FILES = 2000  # that one submission needs
# Refusals at these paths are signed: a refused process may be rerouted, and a refused hello tells
# the clock.
SIGNED = ("/v2/submit", "/v2/submits", "/v1/hello")
MOST_TOGETHER = 32  # submissions in one message
MOST_SENDERS = 512  # colonies that a colony names to its mailbox
MOST_INVITED = 128  # ... and invitations
SENDER_BYTES, INVITED_BYTES = 16, 8  # of an id and of an invitation's name there
M = TypeVar("M", bound=msgspec.Struct)
_NAMES = {"SignedRefusal": "REFUSAL"}  # payloads with another name than their kind
_PART_ITEMS = 4_096  # values in a part that is encoded for itself inside of a message


class Succession(msgspec.Struct, frozen=True):
    """The colony with the public key `old` goes on with the key `new`."""

    old: Key
    new: Key


class Successor(msgspec.Struct, frozen=True):
    """A succession, signed by both keys: it proves itself."""

    by_old: Annotated[bytes, msgspec.Meta(max_length=2048)]
    by_new: Annotated[bytes, msgspec.Meta(max_length=2048)]


class Hello(msgspec.Struct, frozen=True, omit_defaults=True):
    """A sign of life with our signed card. An answer repeats the `nonce` of the request.

    An answer also has the answering colony's `clock`; and `latest`, the later time that it
    remembers and judges by, if there is one; both in seconds. `successors` are the changes of its
    key. `mailbox` says whether it offers to hold messages for the receiver: 0 no, 1 those of
    colonies that it trusts itself, 2 also those of colonies that the receiver names.
    """

    card: bytes
    nonce: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    clock: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = 0
    latest: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = 0
    successors: Annotated[list[Successor], msgspec.Meta(max_length=8)] = []
    mailbox: Annotated[int, msgspec.Meta(ge=0, le=2**40)] = 0


Nonce = Annotated[bytes, msgspec.Meta(min_length=16, max_length=32)]


class Join(msgspec.Struct, frozen=True):
    """A request to join with an invitation. The first has a `nonce`; the second also the inviter's.

    `answer` is the inviter's nonce. `proof` proves knowledge of the invitation's secret.
    """

    card: bytes
    invitation: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}\\Z")]
    nonce: Nonce
    answer: bytes = b""
    proof: bytes = b""


class Welcome(msgspec.Struct, frozen=True):
    """The inviter's `nonce`; once the joiner is trusted, also the inviter's `proof`."""

    nonce: Nonce
    proof: bytes = b""


Checksum = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}\\Z")]


class Carried(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file that a submission needs, as the origin has it under `label` and `name`.

    `mount` is "d" for one of the spec's directories, or the place of the file's snapshot. `ref`,
    JSON, tells where the bytes are if the origin itself does not have them.
    """

    mount: Annotated[str, msgspec.Meta(pattern="^(d|[0-9]{1,3})\\Z")]
    label: str
    name: str
    size: Big
    checksum: str
    ref: bytes = b""


class Fetch(msgspec.Struct, frozen=True):
    """A request for bytes of a file of a process that the receiver sent, from `offset` on."""

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
    """A request to run a process: `pid` is the sender's process id, `spec` its spec as JSON.

    `hops` is how many hops the origin allows, `path` the ids of the colonies before the sender. A
    relay has no spec of its own: `inner` is the signed submission that it received, `target` the
    colony meant if not the receiver, `keys` the public keys of the colonies in `path`. `input`, a
    JSON array, is what a node of a workflow gets from its parents. `files` are the files of its
    mounts.
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
    """A request not to run a process, or to stop it."""

    pid: Pid
    attempt: Attempt


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to a submission or a cancel. `remote` is the receiver's id of the process, or "".

    `asked` is the SHA-256 of the submission that the colony `origin`, where the process began,
    signed. So a receipt answers a message, and not only an id. Both are empty if the process never
    was there.
    """

    pid: Pid
    attempt: Attempt
    status: Literal["accepted", "cancelled", "already_closed"]
    remote: str
    asked: Asked = b""
    origin: str = ""


class Submits(msgspec.Struct, frozen=True):
    """Several submissions in one message: signed envelopes of kind `submit`, each for itself."""

    submits: Annotated[list[bytes], msgspec.Meta(min_length=1, max_length=MOST_TOGETHER)]


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to one submission of several: as in HTTP, its status, `retry-after`, and body."""

    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    body: bytes
    again: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0


class Receipts(msgspec.Struct, frozen=True):
    """The answers to several submissions, in their order."""

    answers: Annotated[list[Answer], msgspec.Meta(max_length=MOST_TOGETHER)]


class Follow(msgspec.Struct, frozen=True, omit_defaults=True):
    """The part of a poll about one process: how much of it the origin has.

    `version` is that of the latest update, `line` the time (Unix ns, the receiver's clock) of the
    last log line, `attributes` their number, `output` the digest of the output, `heard` how many
    entries of each channel the origin has passed.
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
    """An added attribute; `kind` as upstream numbers it."""

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
    """An update of a process since a `Follow`; each field advances one of the follow's.

    `executor` has the process since `start` (Unix ns) if it is running. Of the `attributes` in all,
    `added` are the last ones. `out`, JSON, is the output so far, if it has changed. `said` are
    messages for the initiator, and `heard` how many entries of each channel these cover. `more`:
    there are more updates.
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
    """Messages for a channel of a process that the receiver runs for the sender, in order.

    `start` is how many entries of the sender's channel the receiver got, or the sender passed over,
    before; `after` is that number with these messages.
    """

    pid: Pid
    attempt: Attempt
    name: Text
    start: Count
    after: Count
    said: Annotated[list[Said], msgspec.Meta(max_length=100)] = []


class Heard(msgspec.Struct, frozen=True):
    """The answer to `Say`: how many entries of the sender's channel the receiver has now."""

    pid: Pid
    attempt: Attempt
    name: Text
    after: Count


class Poll(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request for outcomes, which may wait `wait` seconds; `ack` lists those stored.

    It also asks for updates of the processes in `follow`. `whole`: these are all that the sender
    has at the receiver.
    """

    wait: Annotated[int, msgspec.Meta(ge=0, le=30)]
    ack: Annotated[list[Pid], msgspec.Meta(max_length=100)]
    follow: Annotated[list[Follow], msgspec.Meta(max_length=MOST_FOLLOWED)] | None = None
    whole: bool = False


class Outcomes(msgspec.Struct, frozen=True, omit_defaults=True):
    """Signed outcomes, some of those owed; and, if asked for, `news`: encoded updates.

    `cut`: there may be more updates than fit.
    """

    outcomes: list[bytes]
    news: Annotated[list[bytes], msgspec.Meta(max_length=512)] | None = None
    cut: bool = False


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """The end of a forwarded process: `state` as upstream numbers it, `out` JSON, times Unix ns.

    A relay's outcome has the signed outcome `below` it, which alone has the output, and the public
    `keys` of all colonies whose outcomes are inside. `asked` is the SHA-256 of the submission that
    the colony `origin`, where the process began, signed: all outcomes of a chain answer that
    message. An outcome of version 1 of the protocol has neither, and is read only from the store.
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
    """The executors of one type that a colony has now; `functions` are names or globs."""

    functions: Annotated[list[Text], msgspec.Meta(max_length=256)] = []
    executors: Count = 0
    free: Count = 0  # waiting polls for work
    waiting: Count = 0
    running: Count = 0


class Capabilities(msgspec.Struct, frozen=True):
    """What the sender offers the receiver. The statement with the highest `seq` counts.

    `labels` are globs, empty for all. `limits` has the bytes of a submission (`body`), and how many
    more processes of the receiver may wait (`room`); a missing limit means none. `clock` is the
    sender's, in seconds.
    """

    seq: Annotated[int, msgspec.Meta(ge=0)]
    accepting: bool = True
    types: Annotated[dict[Text, Offer], msgspec.Meta(max_length=64)] = {}
    labels: Annotated[list[Text], msgspec.Meta(max_length=64)] = []
    limits: Annotated[dict[Text, int], msgspec.Meta(max_length=16)] = {}
    clock: int = 0


class Introduction(msgspec.Struct, frozen=True, omit_defaults=True):
    """The signed card of a trusted colony. `hops`: 1 if the sender's owner decided so.

    `called` is the name that the sender's owner gave the colony.
    """

    card: Annotated[bytes, msgspec.Meta(max_length=8192)]
    hops: Annotated[int, msgspec.Meta(ge=1, le=DEEPEST)]
    called: Text = ""


class Introductions(msgspec.Struct, frozen=True):
    """The complete list of peers that the sender introduces.

    A peer missing from a later list is no longer introduced. The list with the highest `seq`
    counts.
    """

    known: Annotated[list[Introduction], msgspec.Meta(max_length=64)]
    seq: Big


class Reply(msgspec.Struct, frozen=True):
    """The HTTP answer to a parcel; `after` is the header retry-after.

    `data` may come in parts: with `more`, another part follows.
    """

    id: Name
    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    after: Text
    data: bytes
    more: bool = False


class Collect(msgspec.Struct, frozen=True, omit_defaults=True):
    """A poll of a mailbox, which may wait `wait` seconds, with answers to earlier parcels.

    `senders` has the first 16 bytes of the id of each colony that may leave messages for the
    sender, one after the other, and `invitations` the 8 bytes of each name of an invitation of the
    sender's. With `senders`, the mailbox is to announce the sender and to give out its card.
    """

    wait: Wait
    answers: Annotated[list[Reply], msgspec.Meta(max_length=16)]
    senders: Annotated[bytes, msgspec.Meta(max_length=SENDER_BYTES * MOST_SENDERS)] | None = None
    invitations: Annotated[bytes, msgspec.Meta(max_length=INVITED_BYTES * MOST_INVITED)] = b""


class Parcel(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message for the polling colony, posted to `path`; the colony may wait `wait` seconds.

    `knock` is the header of a join, as its sender gave it to the mailbox.
    """

    id: Name
    path: Text
    body: bytes
    wait: Wait
    knock: Text = ""


class Parcels(msgspec.Struct, frozen=True):
    """The messages that a mailbox holds for the polling colony."""

    parcels: Annotated[list[Parcel], msgspec.Meta(max_length=64)]


class Pass(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message for the colony `to`, which polls the receiver.

    With the sender's `card`, a mailbox that does not know the sender can check the signature.
    `knock` is the header of a join.
    """

    to: Pid
    path: Text
    body: bytes
    wait: Wait
    card: Annotated[bytes, msgspec.Meta(max_length=8192)] = b""
    knock: Text = ""


class Passed(msgspec.Struct, frozen=True):
    """The answer of the colony that polls."""

    status: Annotated[int, msgspec.Meta(ge=100, le=599)]
    after: Text
    data: bytes


class Dial(msgspec.Struct, frozen=True):
    """A request to connect to the sender, at `port` of the address that it came from.

    The receiver shows the `nonce` there, so the sender knows that it was the one to connect.
    """

    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)]
    nonce: Nonce


class Dialled(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to `Dial`: whether the sender's card was fetched at `host`, its address as seen.

    `problem` says why it was not.
    """

    nonce: Nonce
    reached: bool
    host: Text
    problem: Text = ""


class SignedRefusal(msgspec.Struct, frozen=True):
    """The statement that a message was not accepted: its SHA-256 is `digest`, its path `path`.

    The same bytes may have been accepted at another path. `clock` and `latest` as in a hello.
    `kept`: no copy of the message ever was or will be accepted, whichever colony brings it.
    """

    code: str
    message: str
    digest: bytes
    clock: Count = 0
    latest: Count = 0
    path: Text = ""
    kept: bool = False


def dump(message: msgspec.Struct) -> bytes:
    """Return an encoded payload."""
    return cbor.encode(msgspec.to_builtins(message, builtin_types=(bytes,)))


def load(payload: bytes, kind: type[M], *, items: int = 0) -> M:
    """Return a decoded payload of at most `items` values, by default as many as its kind may have.

    Raises Rejected (malformed), which names the field.
    """
    try:
        return _load(payload, kind, items or most_items(kind))
    except (cbor.CborError, msgspec.ValidationError) as error:
        raise Rejected("malformed", f"payload: {error}") from error


def _load(payload: bytes, kind: type[M], items: int) -> M:
    value = cbor.decode(payload, depth=_DEPTH, items=items)
    # Bytes stay bytes: text in base64 would be a second encoding of a value.
    return msgspec.convert(value, kind, builtin_types=(bytes,))


def most_items(kind: type[msgspec.Struct]) -> int:
    """Return how many values a payload may have, from the table of `sizes`."""
    named = Kind.__members__.get(_NAMES.get(kind.__name__, kind.__name__.upper()))
    return SIZES[named].items if named is not None else _PART_ITEMS
