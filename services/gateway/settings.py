"""The gateway's settings."""

from pydantic import Field, SecretStr

from bellhop.settings import TokenSettings


class Settings(TokenSettings):
    """What only the gateway needs."""

    database_url: SecretStr = Field(description="sqlite+aiosqlite:///file or postgresql+asyncpg://…")
    port: int = Field(8000, ge=0, le=65535, description="port that the HTTP face listens on")
    admin_key: SecretStr = Field(description="the key that opens everything; `make admin-key` prints it")
    management_url: SecretStr | None = Field(
        None, description="http://user:password@host:15672 for /v1/system; a user with the tag `monitoring` suffices"
    )
    notifier_url: str = Field("http://127.0.0.1:8001", description="where browsers reach the notifier")
    leaderboard_url: str = Field("http://127.0.0.1:8002", description="where the gateway reaches the leaderboard")
    tasks_days: float = Field(30.0, gt=0, description="how long finished tasks are kept")
    idempotency_hours: float = Field(24.0, gt=0, description="how long idempotency keys are kept")
    outbox_limit: int = Field(1_000_000, gt=0, description="messages waiting for the broker before requests get 503")
    max_body: int = Field(1_048_576, gt=0, description="bytes of a request body at most")
    rate_limit: int = Field(0, ge=0, description="requests a second for each key; 0 is no limit")
