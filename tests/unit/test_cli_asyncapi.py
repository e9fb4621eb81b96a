"""The AsyncAPI document says what the services do, and is one.

Its structure was checked against the official JSON schema of AsyncAPI 3.0.0 as well; these tests need no network.
"""

import json
import re
from typing import Any

import pytest

from bellhop.amqp import topology
from bellhop.cli.asyncapi import MESSAGES, document, messages_in, queues_of


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """The document as whoever reads it sees it."""
    found: dict[str, Any] = json.loads(json.dumps(document()))
    return found


def references(value: Any) -> list[str]:
    """Return every `$ref` in `value`."""
    if isinstance(value, list):
        return [found for item in value for found in references(item)]
    if not isinstance(value, dict):
        return []
    own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
    return own + [found for item in value.values() for found in references(item)]


def resolve(made: dict[str, Any], reference: str) -> Any:
    """Return what a JSON pointer within the document names (RFC 6901)."""
    value: Any = made
    for part in reference.removeprefix("#/").split("/"):
        value = value[part.replace("~1", "/").replace("~0", "~")]
    return value


def test_the_root_has_what_the_specification_demands(made: dict[str, Any]) -> None:
    """`asyncapi` and `info` with title and version are required (AsyncAPI 3.0.0, AsyncAPI Object)."""
    assert made["asyncapi"] == "3.0.0"
    assert made["info"].keys() >= {"title", "version"}
    assert made.keys() <= {
        "asyncapi", "id", "info", "servers", "defaultContentType", "channels", "operations", "components",
    }  # fmt: skip


def test_every_reference_leads_somewhere(made: dict[str, Any]) -> None:
    """None points outside, and none into nothing."""
    found = references(made)
    assert found
    for reference in found:
        assert reference.startswith("#/")
        assert resolve(made, reference) is not None


def test_an_operation_names_messages_of_its_own_channel(made: dict[str, Any]) -> None:
    """They must be references into the channel, not into the components (AsyncAPI 3.0.0, Operation Object)."""
    for operation in made["operations"].values():
        assert operation["action"] in ("send", "receive")
        channel = operation["channel"]["$ref"]
        assert re.fullmatch(r"#/channels/[^/]+", channel)
        assert all(message["$ref"].startswith(f"{channel}/messages/") for message in operation["messages"])


def test_a_channel_has_a_parameter_for_each_brace_of_its_address(made: dict[str, Any]) -> None:
    """And no other (AsyncAPI 3.0.0, Parameters Object)."""
    for channel in made["channels"].values():
        assert set(re.findall(r"\{(\w+)\}", channel["address"] or "")) == channel.get("parameters", {}).keys()


def test_bindings_have_the_fields_of_version_0_3_0_alone(made: dict[str, Any]) -> None:
    """A channel is a routing key with its exchange, or a queue; and it is one of the topology."""
    exchanges = {exchange.name: exchange.type for exchange in topology.EXCHANGES}
    for name, channel in made["channels"].items():
        binding = channel["bindings"]["amqp"]
        assert binding["bindingVersion"] == "0.3.0"
        if binding["is"] == "routingKey":
            assert exchanges[binding["exchange"]["name"]] == binding["exchange"]["type"], name
            assert binding.keys() == {"is", "exchange", "bindingVersion"}
        else:
            assert binding["is"] == "queue"
            assert binding["queue"]["name"] in {queue.name for queue in topology.QUEUES}
            assert binding.keys() == {"is", "queue", "bindingVersion"}


def test_payloads_are_the_contracts(made: dict[str, Any]) -> None:
    """Each message with a contract points at its schema, which names the same fields."""
    for message in MESSAGES:
        payload = made["components"]["messages"][message.name]["payload"]
        if message.model is not None:
            schema = resolve(made, payload["$ref"])
            assert schema["properties"].keys() == message.model.model_fields.keys()


@pytest.mark.parametrize(
    ("exchange", "key", "queue"),
    [
        ("work", "leaderboard.scores", "leaderboard.scores"),
        ("work", "mailer.reactions", "mailer.reactions"),
        ("work", "mail.bulk", "mail.bulk"),
        ("outcomes", "mail.bulk.sent", "gateway.outcomes"),
        ("notifications", "whatever", "notifier.log"),
    ],
)
def test_who_receives_follows_from_the_bindings(exchange: str, key: str, queue: str) -> None:
    """By the exchange's own type."""
    assert queue in queues_of(exchange, key)


def test_what_no_binding_matches_is_not_said_to_arrive() -> None:
    """No queue of ours is bound to `events`, and mail does not come to the scores."""
    assert queues_of("events", "score.submitted") == set()
    assert [message.name for message in messages_in("leaderboard.scores")] == ["score.submitted"]
