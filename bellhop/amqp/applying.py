"""Apply the table of `topology` to a running broker, also over the table of an earlier version.

Bindings between our exchanges and queues, and policies with our names, are removed if the table no longer has them.
Queues, bindings, policies and users of others are never changed. Applying is idempotent; messages stay in their queues.
"""

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from bellhop.amqp import topology
from bellhop.amqp.topology import BINDINGS, EXCHANGES, PROPERTY, QUEUES, RIGHTS, Rights, TopologyError

_FORMER_RETRY_AND_DEAD = r"retry\..+|dead"
FORMER_RIGHTS: dict[str, tuple[Rights, ...]] = {
    "gateway": (
        Rights(write=rf"^(events|work|{_FORMER_RETRY_AND_DEAD})$", read=r"^(gateway\.outcomes|dead-letters)$"),
        Rights(
            write=rf"^(events|notifications|work|unrouted|{_FORMER_RETRY_AND_DEAD})$",
            read=r"^(gateway\.(outcomes|announcements)|dead-letters|unrouted)$",
        ),
    ),
    "mailer": (
        Rights(
            write=rf"^(work|outcomes|mailer\.reactions|{_FORMER_RETRY_AND_DEAD})$",
            read=r"^(mail\.(urgent|normal|bulk|cancel)|mailer\.reactions|events)$",
        ),
        Rights(
            write=rf"^(work|outcomes|{_FORMER_RETRY_AND_DEAD})$",
            read=r"^(mail\.(urgent|normal|bulk|cancel)|mailer\.reactions)$",
        ),
    ),
}
"""Rights that earlier versions granted. A user with exactly these is ours and gets the current rights; any other user
is left as it is."""

_OURS = {one.name for one in EXCHANGES} | {one.name for one in QUEUES}
_EXCLUSIVE = {one.name for one in EXCHANGES} - {"events"}


@dataclass(frozen=True, slots=True)
class Applied:
    """What was removed, and what the operator must do, as sentences."""

    removed: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def lines(self) -> list[str]:
        """Return removals and warnings, one sentence a line."""
        return [*(f"removed {one}" for one in self.removed), *self.warnings]


async def apply(management_url: str, vhost: str = "/", *, keep_policies: bool = False) -> Applied:
    """Apply the table to a running broker. Idempotent.

    Args:
        management_url: like http://user:password@host:15672, of an administrator.
        vhost: the virtual host; it must exist.
        keep_policies: do not overwrite an existing policy of ours: an operator may have changed it.

    Raises:
        TopologyError: the broker refused a part of it, or did not answer; applying it again completes it.
    """
    try:
        async with httpx.AsyncClient(base_url=management_url, timeout=30, trust_env=False) as client:
            return await _Work(client, vhost).apply(keep_policies)
    except httpx.HTTPStatusError as error:
        answer = error.response
        raise TopologyError(f"RabbitMQ refused the topology ({answer.status_code}): {answer.text[:500]}") from error
    except httpx.HTTPError as error:
        raise TopologyError(f"the management API does not answer: {error or type(error).__name__}") from error


class _Work:
    """One application to one virtual host."""

    def __init__(self, client: httpx.AsyncClient, vhost: str) -> None:
        self._client = client
        self._vhost = vhost
        self._path = quote(vhost, safe="")

    async def apply(self, keep_policies: bool) -> Applied:
        policies = {one["name"] for one in await self._get(f"/api/policies/{self._path}")}
        document = topology.definitions()
        if keep_policies:
            document["policies"] = [one for one in document["policies"] if one["name"] not in policies]
        # Add before removing, so that no queue is without its binding at any moment.
        await self._ask("POST", f"/api/definitions/{self._path}", json=document)
        await self._bring_rights()
        bindings = await self._get(f"/api/bindings/{self._path}")
        warnings = list(_foreign(bindings))
        unwanted = [one for one in bindings if _is_ours(one) and not _is_wanted(one)]
        stale = policies & {f"bellhop.{name}" for name in _OURS} - {
            one["name"] for one in topology.definitions()["policies"]
        }
        if not unwanted and not stale:
            return Applied((), tuple(warnings))
        if older := await self._older_gateways():
            # Gateways of earlier versions publish by way of the old bindings.
            warnings.append(
                f"A gateway of an earlier version is connected ({older[0]}), so its bindings are kept."
                " Apply the topology again when it has ended."
            )
            return Applied((), tuple(warnings))
        removed = [await self._remove_binding(one) for one in unwanted]
        removed += [await self._remove_policy(name) for name in sorted(stale)]
        return Applied(tuple(removed), tuple(warnings))

    async def _bring_rights(self) -> None:
        for user, former in FORMER_RIGHTS.items():
            path = f"/api/permissions/{self._path}/{user}"
            answer = await self._client.get(path)
            if answer.status_code == 404:
                continue
            answer.raise_for_status()
            given = answer.json()
            if any(_same(given, rights) for rights in former):
                rights = RIGHTS[user]
                wanted = {"configure": rights.configure, "write": rights.write, "read": rights.read}
                await self._ask("PUT", path, json=wanted)

    async def _older_gateways(self) -> list[str]:
        found = await self._get(f"/api/vhosts/{self._path}/connections")
        properties = [one.get("client_properties") or {} for one in found]
        return [
            name
            for one in properties
            if (name := str(one.get("connection_name", ""))).startswith("bellhop/gateway/") and PROPERTY not in one
        ]

    async def _remove_binding(self, one: dict[str, Any]) -> str:
        kind = "q" if one["destination_type"] == "queue" else "e"
        source, destination, key = (quote(one[part], safe="") for part in ("source", "destination", "properties_key"))
        await self._delete(f"/api/bindings/{self._path}/e/{source}/{kind}/{destination}/{key}")
        return f"the binding from {one['source']} to {one['destination']} with the key {one['routing_key']!r}"

    async def _remove_policy(self, name: str) -> str:
        await self._delete(f"/api/policies/{self._path}/{quote(name, safe='')}")
        return f"the policy {name}"

    async def _get(self, path: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self._ask("GET", path)).json()
        return found

    async def _ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        answer = await self._client.request(method, path, **more)
        answer.raise_for_status()
        return answer

    async def _delete(self, path: str) -> None:
        answer = await self._client.delete(path)
        if answer.status_code != 404:  # another deploy step removed it
            answer.raise_for_status()


def _is_ours(binding: dict[str, Any]) -> bool:
    """Return whether both ends are in the table; only Bellhop creates such bindings."""
    return binding["source"] in _OURS and binding["destination"] in _OURS


def _is_wanted(binding: dict[str, Any]) -> bool:
    kind = binding["destination_type"] == "exchange"
    return any(
        (one.source, one.destination, one.key, one.to_exchange)
        == (binding["source"], binding["destination"], binding["routing_key"], kind)
        for one in BINDINGS
    ) and not binding.get("arguments")


def _foreign(bindings: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each destination of others on an exchange that is for one queue of ours."""
    found = {
        (one["source"], one["destination_type"], one["destination"])
        for one in bindings
        if one["source"] in _EXCLUSIVE and one["destination"] not in _OURS
    }
    return [
        f"The {kind} {destination} is bound to the exchange {source}, which is for Bellhop's own queue: a publisher"
        f" no longer notices when that queue is missing. Bind {destination} to the exchange events instead."
        for source, kind, destination in sorted(found)
    ]


def _same(given: dict[str, Any], rights: Rights) -> bool:
    return (given["configure"], given["write"], given["read"]) == (rights.configure, rights.write, rights.read)
