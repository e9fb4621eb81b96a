"""Who gets no mail: the gateway's list, asked for the mails that events set off.

Mails that a client asks for are looked up by the gateway when it takes them. Those of events begin here.
"""

from collections.abc import Sequence

import httpx

from bellhop.errors import Unavailable
from bellhop.web import tokens

AUDIENCE = "suppressions"
TOKEN_SECONDS = 60


class SuppressionsUnavailable(Unavailable):
    """The gateway, which has the list, does not answer as it should."""


class Suppressions:
    """The list."""

    def __init__(self, gateway_url: str, service_key: str | None, http: httpx.AsyncClient) -> None:
        """`service_key`: signs what opens the gateway; without it nobody can be looked up, and nobody is suppressed."""
        self._url = f"{gateway_url}/v1/suppressions/among"
        self._service_key = service_key
        self._http = http

    async def among(self, addresses: Sequence[str]) -> dict[str, str]:
        """Return which of these addresses get no mail now, and why.

        Raises:
            SuppressionsUnavailable: nobody knows at the moment.
        """
        if self._service_key is None or not addresses:
            return {}
        token = tokens.mint(self._service_key, "mailer", TOKEN_SECONDS, AUDIENCE)
        try:
            answer = await self._http.post(
                self._url, json={"addresses": list(addresses)}, headers={"Authorization": f"Bearer {token}"}
            )
        except httpx.HTTPError as error:
            raise SuppressionsUnavailable(f"the gateway does not answer: {error or type(error).__name__}") from error
        if answer.status_code != 200:
            raise SuppressionsUnavailable(f"the gateway answers {answer.status_code} to a question about suppressions")
        found: dict[str, str] = answer.json()["suppressed"]
        return found
