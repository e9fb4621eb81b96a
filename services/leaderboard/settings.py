"""The leaderboard's settings; the variable is `BELLHOP_` and the name in capitals."""

from pydantic import Field, SecretStr

from bellhop.catalog import PORTS
from bellhop.settings import TokenSettings


class LeaderboardSettings(TokenSettings):
    """The settings of all services, and the leaderboard's own."""

    database_url: SecretStr = Field(description="sqlite+aiosqlite:///file or postgresql+asyncpg://…")
    port: int = Field(PORTS["leaderboard"], ge=0, le=65535, description="port to listen on for HTTP")
    pull_seconds: float = Field(
        5.0, gt=0, description="maximum seconds between two batches of scores; a full batch is applied immediately"
    )
    # A message carries up to 1,000 scores (100 KB), and three batches may be in memory together.
    pull_messages: int = Field(200, ge=1, le=10_000, description="number of messages in a full batch")
    refresh_seconds: float = Field(2.0, gt=0, description="seconds between two reads of what other replicas wrote")
    past_seasons: int = Field(
        8, ge=0, description="number of rankings of past seasons that are kept in memory; others are read on demand"
    )
    boards_limit: int = Field(
        100_000,
        ge=1,
        description="maximum number of boards; a score beyond it becomes a dead letter (the gateway checks the"
        " limit first)",
    )
