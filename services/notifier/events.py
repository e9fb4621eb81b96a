"""Convert deliveries of the stream to live events, once for each event and process.

`_show`, at the end of this file, defines which event types are shown on which channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

from bellhop.amqp.message import Delivery
from bellhop.contracts.base import one_line
from bellhop.contracts.envelope import Envelope
from bellhop.contracts.identity import OUR_CHANNELS
from bellhop.contracts.kinds import KINDS
from bellhop.contracts.notifications import MAX_SHOWN_BYTES, Notification
from bellhop.contracts.outcomes import Outcome, State
from bellhop.contracts.scores import LeaderboardChanged

OVERHEAD_BYTES = 600
"""Bytes of memory of an event in addition to its text."""


@dataclass(frozen=True, slots=True)
class Event:
    """One position of the stream. An event without channels is not shown, but its position counts."""

    offset: int
    key: bytes
    """Derived from the event's identity, so it is the same in every process and after every restart."""
    type: str = ""
    channels: tuple[str, ...] = ()
    rest: bytes = b""
    """The JSON text after the channel's name; only that name differs between subscribers."""

    @property
    def id(self) -> str:
        """The id that clients resume from: docs/decisions/0005-stream-ids.md."""
        return f"{self.key[:4].hex()}:{self.offset}"

    @property
    def size(self) -> int:
        """Bytes of memory, roughly."""
        return len(self.rest) + OVERHEAD_BYTES

    def json(self, channel: str) -> bytes:
        """Return the JSON for subscribers of `channel`; it does not name the event's other channels."""
        return b'{"channel":' + orjson.dumps(channel) + self.rest


def read_event(delivery: Delivery, live_types: dict[str, str]) -> Event:
    """Return the event of a delivery.

    Args:
        delivery: from the stream, so with an offset.
        live_types: event type -> template of its channel, from the settings.

    Raises:
        ValueError: the message breaks its contract, or is too large to be shown.
    """
    envelope = delivery.envelope
    offset = offset_of(delivery)
    key = key_of(envelope)
    # An outcome is shown in part: its size is checked after the other fields are removed.
    if SHOWN.get(envelope.type) is not _outcome:
        _check_size(len(delivery.body))
    channels, data = _show(envelope, delivery.body, live_types)
    if not channels:
        return Event(offset, key)
    event = Event(offset, key, one_line(envelope.type), tuple(dict.fromkeys(channels)))
    rest = {
        "id": event.id,
        "type": envelope.type,
        "time": envelope.time,
        "event_id": envelope.id,
        "source": envelope.source,
        "subject": envelope.subject,
        "data": data,
    }
    return Event(offset, key, event.type, event.channels, b"," + orjson.dumps(rest, option=orjson.OPT_UTC_Z)[1:])


def _check_size(size: int) -> None:
    if size > MAX_SHOWN_BYTES:
        raise ValueError(f"it has {size} bytes, more than the {MAX_SHOWN_BYTES} that are shown live")


def offset_of(delivery: Delivery) -> int:
    """Return the position in the stream."""
    if delivery.offset is None:
        raise TypeError(f"the delivery {delivery.envelope.id} does not come from a stream")
    return delivery.offset


def key_of(envelope: Envelope) -> bytes:
    """Return 16 bytes that identify the event.

    The first four are part of the ids that clients resume from. They depend only on source and id, as in earlier
    versions, so that a client can resume at a replica of another version.
    """
    tag = blake2b(f"{envelope.source}\0{envelope.id}".encode(), digest_size=16).digest()[:4]
    return tag + blake2b("\0".join(envelope.identity).encode(), digest_size=12).digest()


Shown = tuple[list[str], Any]
"""Channels, and the data that their subscribers see."""


def _notification(envelope: Envelope, body: bytes) -> Shown:
    notification = Notification.read(body)
    return notification.channels, notification.model_dump(mode="json", exclude={"channels"})


def _leaderboard(envelope: Envelope, body: bytes) -> Shown:
    board = LeaderboardChanged.read(body).board
    return [f"leaderboard:{board}"], orjson.loads(body)


def _outcome(envelope: Envelope, body: bytes) -> Shown:
    outcome = Outcome.read(body)
    # The document, with the whole text of the mail, is for the ledger, and is not shown.
    data = orjson.loads(body) if outcome.document is None else outcome.model_dump(mode="json", exclude={"document"})
    _check_size(len(orjson.dumps(data)))
    return [f"tasks:{outcome.owner}"] if outcome.owner else [], data


SHOWN: dict[str, Callable[[Envelope, bytes], Shown]] = {
    "notification.raised": _notification,
    "leaderboard.changed": _leaderboard,
    **{kind.outcome_type(state): _outcome for kind in KINDS.values() for state in State},
}
_OF_CLIENTS: dict[str, Callable[[Envelope, bytes], Shown]] = {"notification.raised": _notification}


def _show(envelope: Envelope, body: bytes, live_types: dict[str, str]) -> Shown:
    if envelope.owner is None:
        return _shown(envelope, body, live_types, SHOWN)
    # Published by a client, which may use neither our event types nor our channels.
    channels, data = _shown(envelope, body, live_types, _OF_CLIENTS)
    return [channel for channel in channels if not channel.startswith(OUR_CHANNELS)], data


def _shown(
    envelope: Envelope, body: bytes, live_types: dict[str, str], known: dict[str, Callable[[Envelope, bytes], Shown]]
) -> Shown:
    if (show := known.get(envelope.type)) is not None:
        return show(envelope, body)
    template = live_types.get(envelope.type)
    if template is None or ("{subject}" in template and not envelope.subject):
        return [], None
    channel = template.replace("{type}", envelope.type).replace("{subject}", envelope.subject or "")
    return [channel], orjson.loads(body)
