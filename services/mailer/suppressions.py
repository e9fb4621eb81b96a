"""Who gets no mail: the gateway's list, asked for the mails that events set off.

Mails that a client asks for are looked up by the gateway when it takes them. Those of events begin here.
"""

from collections.abc import Sequence

from bellhop.web.peer import Peer

AUDIENCE = "suppressions"


class Suppressions:
    """The list."""

    def __init__(self, gateway: Peer | None) -> None:
        """`gateway`: None without a service key; then no address can be looked up, and none is suppressed."""
        self._gateway = gateway

    async def among(self, addresses: Sequence[str]) -> dict[str, str]:
        """Return which of these addresses get no mail now, and why.

        Raises:
            PeerUnavailable: the gateway, which has the list, does not answer as it should.
        """
        if self._gateway is None or not addresses:
            return {}
        document = {"addresses": list(addresses)}
        answer = await self._gateway.ask("POST", "/v1/suppressions/among", audience=AUDIENCE, json=document)
        found: dict[str, str] = answer["suppressed"]
        return found
