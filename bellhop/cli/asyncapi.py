"""`bellhop asyncapi`: the messages of Bellhop, as an AsyncAPI 3.0 document.

It is made from the contracts (pydantic) and the topology, which the services themselves use. The table at the end of
this file lists each message with its exchange and routing key; the queues that get it follow from the bindings.

https://www.asyncapi.com/docs/reference/specification/v3.0.0
https://www.asyncapi.com/docs/reference/bindings/amqp (version 0.3.0)
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from bellhop.amqp import topology
from bellhop.contracts import reactions
from bellhop.contracts.mail import MailTask
from bellhop.contracts.notifications import Notification
from bellhop.contracts.outcomes import Outcome, State
from bellhop.contracts.reactions import MailerStarted
from bellhop.contracts.scores import LeaderboardChanged, ScoreBatch
from bellhop.contracts.tasks import CancelTask, Lane

Document = dict[str, Any]

BINDING_VERSION = "0.3.0"


@dataclass(frozen=True, slots=True)
class Described:
    """One kind of message, and the exchange to which a service publishes it."""

    name: str
    """The name in the document; the event type if that is fixed."""
    model: type[BaseModel] | None
    """None: any JSON."""
    exchange: str
    key: str
    """Routing key; `{…}` stands for one word out of `parameters`."""
    sender: str
    summary: str
    parameters: dict[str, list[str]] = field(default_factory=dict)

    def routing_keys(self) -> Iterator[str]:
        """Yield every routing key that it may have; a parameter without a list of values becomes `any`."""
        keys = [self.key]
        for name, values in self.parameters.items():
            keys = [key.replace(f"{{{name}}}", value) for key in keys for value in values or ["any"]]
        yield from keys


def document() -> Document:
    """Return the document, ready for `json.dumps`."""
    models = [message.model for message in MESSAGES if message.model is not None]
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Bellhop over AMQP",
            "version": version("bellhop"),
            "description": "What the services of Bellhop publish and consume. To get a copy of messages, bind your"
            " own queue to one of the exchanges. HTTP is described by OpenAPI at /docs.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "rabbitmq": {
                "host": "localhost:5672",
                "protocol": "amqp",
                "protocolVersion": "0.9.1",
                "description": "RabbitMQ 3.10 or later; the host is an example",
            }
        },
        "channels": dict(_channels()),
        "operations": dict(_operations()),
        "components": {
            "schemas": schemas.get("$defs", {}) | {"Headers": HEADERS},
            "messages": {message.name: _message(message) for message in MESSAGES},
        },
    }


def _message(message: Described) -> Document:
    payload: Document = (
        {"description": "any JSON"}
        if message.model is None
        else {"$ref": f"#/components/schemas/{message.model.__name__}"}
    )
    return {
        "name": message.name,
        "summary": message.summary,
        "contentType": "application/json",
        "headers": {"$ref": "#/components/schemas/Headers"},
        "payload": payload,
        "bindings": {"amqp": {"messageType": message.name, "bindingVersion": BINDING_VERSION}},
    }


def _channels() -> Iterator[tuple[str, Document]]:
    for message in MESSAGES:
        exchange = next(one for one in topology.EXCHANGES if one.name == message.exchange)
        channel: Document = {
            # A fanout exchange reads no key.
            "address": message.key if exchange.type != "fanout" else None,
            "title": f"exchange {exchange.name}, key {message.key}",
            "messages": {message.name: {"$ref": f"#/components/messages/{message.name}"}},
            "bindings": {
                "amqp": {
                    "is": "routingKey",
                    "exchange": {
                        "name": exchange.name,
                        "type": exchange.type,
                        "durable": True,
                        "autoDelete": False,
                        "vhost": "/",
                    },
                    "bindingVersion": BINDING_VERSION,
                }
            },
        }
        if message.parameters and exchange.type != "fanout":
            channel["parameters"] = {
                name: {"enum": values} if values else {"description": "any event type"}
                for name, values in message.parameters.items()
            }
        yield sending(message), channel
    for queue in topology.QUEUES:
        if messages := messages_in(queue.name):
            yield (
                receiving(queue.name),
                {
                    "address": queue.name,
                    "title": f"queue {queue.name} ({queue.type})",
                    "messages": {one.name: {"$ref": f"#/components/messages/{one.name}"} for one in messages},
                    "bindings": {
                        "amqp": {
                            "is": "queue",
                            "queue": {
                                "name": queue.name,
                                "durable": True,
                                "exclusive": False,
                                "autoDelete": False,
                                "vhost": "/",
                            },
                            "bindingVersion": BINDING_VERSION,
                        }
                    },
                },
            )


def _operations() -> Iterator[tuple[str, Document]]:
    for message in MESSAGES:
        channel = sending(message)
        yield (
            f"{message.sender}.{channel}",
            {
                "action": "send",
                "summary": message.summary,
                "channel": {"$ref": f"#/channels/{channel}"},
                "messages": [{"$ref": f"#/channels/{channel}/messages/{message.name}"}],
                "bindings": {"amqp": {"deliveryMode": 2, "timestamp": True, "bindingVersion": BINDING_VERSION}},
            },
        )
    for queue in topology.QUEUES:
        channel = receiving(queue.name)
        if messages := messages_in(queue.name):
            yield (
                channel,
                {
                    "action": "receive",
                    "channel": {"$ref": f"#/channels/{channel}"},
                    "messages": [{"$ref": f"#/channels/{channel}/messages/{one.name}"} for one in messages],
                    "bindings": {"amqp": {"ack": True, "bindingVersion": BINDING_VERSION}},
                },
            )


def sending(message: Described) -> str:
    """Return the name of the channel that `message` is published to."""
    return f"to.{message.exchange}.{message.name}"


def receiving(queue: str) -> str:
    """Return the name of the channel of a queue."""
    return f"from.{queue}"


def messages_in(queue: str) -> list[Described]:
    """Return the messages that reach `queue`, by the bindings."""
    return [
        message
        for message in MESSAGES
        if any(queue in queues_of(message.exchange, key) for key in message.routing_keys())
    ]


def queues_of(exchange: str, key: str) -> set[str]:
    """Return the queues that a message published to `exchange` with `key` reaches."""
    kind = next(one.type for one in topology.EXCHANGES if one.name == exchange)
    reached: set[str] = set()
    for binding in topology.BINDINGS:
        if binding.source != exchange or not _matches(kind, binding.key, key):
            continue
        reached |= queues_of(binding.destination, key) if binding.to_exchange else {binding.destination}
    return reached


def _matches(kind: str, pattern: str, key: str) -> bool:
    if kind == "fanout":
        return True
    if kind == "direct":
        return pattern == key
    # A topic exchange: * is one word, # is any number of them (https://www.rabbitmq.com/tutorials/tutorial-five-python).
    words = re.escape(pattern).replace(r"\*", r"[^.]+").replace(r"\#", ".*")
    return re.fullmatch(words, key) is not None


HEADERS: Document = {
    "type": "object",
    "description": "CloudEvents 1.0.2 in binary mode; owner, source and id together identify the event",
    "required": [
        "cloudEvents:specversion",
        "cloudEvents:id",
        "cloudEvents:source",
        "cloudEvents:type",
        "cloudEvents:time",
        "attempt",
    ],
    "properties": {
        "cloudEvents:specversion": {"type": "string", "const": "1.0"},
        "cloudEvents:id": {"type": "string"},
        "cloudEvents:source": {"type": "string"},
        "cloudEvents:type": {"type": "string"},
        "cloudEvents:time": {"type": "string", "format": "date-time"},
        "cloudEvents:subject": {"type": "string"},
        "bellhop-owner": {"type": "string", "description": "name of the API key that published it; none on our own"},
        "attempt": {"type": "integer", "minimum": 1, "description": "counts our own retries, from 1"},
        "traceparent": {"type": "string", "description": "W3C Trace Context"},
    },
}

# The messages, with exchange and routing key.
MESSAGES = (
    Described("score.submitted", ScoreBatch, "work", "leaderboard.scores", "gateway", "up to 1,000 scores"),
    Described(
        "notification.raised", Notification, "notifications", "notification.raised", "gateway",
        "something to show live",
    ),
    Described(
        "event", None, "events", "{type}", "gateway",
        "a copy of every event, score.submitted and notification.raised too, for your own queues",
        {"type": []},
    ),
    Described(
        "reaction", None, "work", "mailer.reactions", "gateway", "an event of a type that a mail template names",
    ),
    Described("unrouted", None, "unrouted", "{type}", "gateway", "an event that no queue is bound to", {"type": []}),
    Described(
        reactions.TYPE, MailerStarted, "work", reactions.QUEUE, "mailer", "which event types mail templates name",
    ),
    Described(
        "mail.requested", MailTask, "work", "mail.{lane}", "gateway", "one mail to one recipient",
        {"lane": [lane.value for lane in Lane]},
    ),
    Described("mail.cancelled", CancelTask, "work", "mail.cancel", "gateway", "do not begin this task"),
    Described(
        "outcome", Outcome, "outcomes", "mail.{lane}.{state}", "mailer", "one step of one task, of type mail.<state>",
        {"lane": [lane.value for lane in Lane], "state": [state.value for state in State]},
    ),
    Described(
        "task.changed", Outcome, "notifications", "mail.{state}", "gateway",
        "an outcome of urgent or normal mail, of type mail.<state>, once the ledger has it",
        {"state": [state.value for state in State]},
    ),
    Described(
        "leaderboard.changed", LeaderboardChanged, "notifications", "leaderboard.changed", "leaderboard",
        "the top of a board after its results changed",
    ),
)  # fmt: skip
