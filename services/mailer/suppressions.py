"""Look up suppressions in the gateway, for the mails of events.

The gateway itself looks up the address of a mail that a client requests. The mails of events are created here.
"""

from collections.abc import Sequence

from bellhop.web.peer import Peer

AUDIENCE = "suppressions"


class Suppressions:
    """The gateway's list of suppressed addresses."""

    def __init__(self, gateway: Peer | None) -> None:
        """`gateway`: None without a service key; then no address can be looked up, and none is suppressed."""
        self._gateway = gateway

    async def among(self, addresses: Sequence[str]) -> dict[str, str]:
        """Return the suppressed ones of these addresses, with their reasons.

        Raises:
            PeerUnavailable: the gateway does not answer, or not with 200.
        """
        if self._gateway is None or not addresses:
            return {}
        document = {"addresses": list(addresses)}
        answer = await self._gateway.ask("POST", "/v1/suppressions/among", audience=AUDIENCE, json=document)
        found: dict[str, str] = answer["suppressed"]
        return found
