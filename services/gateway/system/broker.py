"""Queues, connections and alarms of RabbitMQ, from its management API."""

from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from bellhop.amqp.topology import QUEUES
from services.gateway.system.schemas import BrokerAnswer, QueueAnswer, ReplicaAnswer, UnknownBrokerAnswer

QUEUE_COLUMNS = (
    "name,type,state,consumers,messages_ready,messages_unacknowledged,"
    "message_stats.publish_details.rate,message_stats.deliver_get_details.rate,message_stats.ack_details.rate"
)
TIMEOUT = 5.0
_PLACES = {queue.name: place for place, queue in enumerate(QUEUES)}


async def broker_view(http: httpx.AsyncClient, management_url: str | None) -> BrokerAnswer | UnknownBrokerAnswer:
    """Return queues, service replicas and alarms; or one sentence why they are unknown."""
    if management_url is None:
        return {"unknown": "BELLHOP_MANAGEMENT_URL is not set, so queues and replicas cannot be shown."}
    parts = urlsplit(management_url)
    auth = httpx.BasicAuth(parts.username or "", parts.password or "")
    base = f"{parts.scheme}://{parts.hostname}:{parts.port or 15672}/api"
    try:
        queues = await _get(http, auth, f"{base}/queues?columns={QUEUE_COLUMNS}")
        connections = await _get(http, auth, f"{base}/connections?columns=user_provided_name,state,connected_at,user")
        nodes = await _get(http, auth, f"{base}/nodes?columns=name,running,mem_alarm,disk_free_alarm,mem_used")
    except httpx.HTTPError as error:
        return {"unknown": f"RabbitMQ's management API does not answer: {type(error).__name__}."}
    return {
        "queues": sorted((_queue(queue) for queue in queues), key=_place),
        "services": _services(connections),
        "alarms": [
            f"{node['name']}: {alarm.removesuffix('_alarm')}"
            for node in nodes
            for alarm in ("mem_alarm", "disk_free_alarm")
            if node.get(alarm)
        ],
        "nodes": [{"name": node["name"], "running": node.get("running", False)} for node in nodes],
    }


async def _get(http: httpx.AsyncClient, auth: httpx.BasicAuth, url: str) -> list[Mapping[str, Any]]:
    answer = await http.get(url, auth=auth, timeout=TIMEOUT)
    answer.raise_for_status()
    found: list[Mapping[str, Any]] = answer.json()
    return found


def _queue(queue: Mapping[str, Any]) -> QueueAnswer:
    stats = queue.get("message_stats") or {}
    return {
        "name": queue["name"],
        "type": queue.get("type"),
        "state": queue.get("state"),
        "consumers": queue.get("consumers", 0),
        "ready": queue.get("messages_ready", 0),
        "unacked": queue.get("messages_unacknowledged", 0),
        "published_per_second": (stats.get("publish_details") or {}).get("rate", 0.0),
        "delivered_per_second": (stats.get("deliver_get_details") or {}).get("rate", 0.0),
    }


def _place(queue: QueueAnswer) -> tuple[int, str]:
    """Our queues in the order of the topology, then those of other clients."""
    return _PLACES.get(queue["name"], len(_PLACES)), queue["name"]


def _services(connections: Iterable[Mapping[str, Any]]) -> list[ReplicaAnswer]:
    """Return the replicas by their connections: RabbitMQ already checks their heartbeats.

    A connection is named `bellhop/<service>/<instance>/<purpose>`.
    """
    replicas: dict[tuple[str, str], ReplicaAnswer] = {}
    for connection in connections:
        product, *rest = (connection.get("user_provided_name") or "").split("/")
        if product != "bellhop" or len(rest) != 3:
            continue
        service, instance, purpose = rest
        replica = replicas.setdefault(
            (service, instance), {"service": service, "instance": instance, "connections": {}, "since": None}
        )
        replica["connections"][purpose] = connection.get("state")
        since = connection.get("connected_at")
        if since is not None and (replica["since"] is None or since < replica["since"]):
            replica["since"] = since
    return sorted(replicas.values(), key=lambda replica: (replica["service"], replica["instance"]))
