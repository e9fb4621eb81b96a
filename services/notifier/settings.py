"""The notifier's settings; the variable is `BELLHOP_` and the name in capitals."""

from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from bellhop.catalog import PORTS
from bellhop.settings import LiveSettings


class NotifierSettings(LiveSettings):
    """Settings of all services, and the notifier's own."""

    port: int = Field(PORTS["notifier"], ge=0, le=65535, description="port to listen on for HTTP")

    live_origins: Annotated[list[str], NoDecode] = Field(
        default_factory=list,
        description="origins of other sites whose pages may read streams: https://shop.example,… No wildcards",
    )
    window_events: int = Field(
        50_000, ge=1, description="maximum number of events that are kept for readers that resume"
    )
    window_bytes: int = Field(64 * 2**20, ge=1, description="maximum bytes of memory for these events")
    window_seconds: int = Field(3600, ge=1, description="maximum age of these events in seconds")
    max_subscribers: int = Field(
        12_000, ge=1, description="maximum number of concurrent streams, sockets and polls in this process"
    )
    max_subscribers_per_subject: int = Field(50, ge=1, description="maximum number of these for one subject of tokens")
    # At least what is written together (two pieces of PIECE_BYTES bytes): it does not make a reader slow.
    slow_reader_bytes: int = Field(2**20, ge=2**20, description="unsent bytes at which a slow reader is disconnected")
    ping_seconds: int = Field(15, ge=1, description="seconds between two pings on a quiet stream")

    @field_validator("live_origins", mode="before")
    @classmethod
    def _read_origins(cls, value: object) -> object:
        return [origin.strip() for origin in value.split(",") if origin.strip()] if isinstance(value, str) else value

    @field_validator("live_origins")
    @classmethod
    def _exact_origins(cls, value: list[str]) -> list[str]:
        for origin in value:
            scheme, separator, host = origin.partition("://")
            if scheme not in ("http", "https") or not separator or not host or set("/*?#@") & set(host):
                raise ValueError(f"{origin!r} is not an origin like https://shop.example or http://localhost:5173")
        return value
