"""What the handlers work with."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from bellhop.service import Base

from .settings import SmsSettings

PROVIDER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Sms:
    """Everything that is open."""

    http: httpx.AsyncClient
    url: str


@asynccontextmanager
async def open_sms(base: Base[SmsSettings]) -> AsyncIterator[Sms]:
    """Open the client of the provider."""
    async with httpx.AsyncClient(timeout=PROVIDER_SECONDS) as http:
        yield Sms(http, base.settings.sms_provider_url)
