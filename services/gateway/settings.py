"""The gateway's settings."""

from pydantic import Field, SecretStr, field_validator

from bellhop.catalog import PORTS
from bellhop.settings import LiveSettings
from bellhop.web.tokens import service_key


class Settings(LiveSettings):
    """What only the gateway needs."""

    database_url: SecretStr = Field(description="sqlite+aiosqlite:///file or postgresql+asyncpg://…")
    port: int = Field(PORTS["gateway"], ge=0, le=65535, description="port that the HTTP face listens on")
    admin_key: SecretStr = Field(description="the key that opens everything; `make admin-key` prints it")
    link_keys: SecretStr | None = Field(
        None,
        description="sign the links in mails, commas between them: the first one signs, every one verifies; none: the"
        " token key does, and a new token key voids every link that was mailed before",
    )
    management_url: SecretStr | None = Field(
        None, description="http://user:password@host:15672 for /v1/system; a user with the tag `monitoring` suffices"
    )
    notifier_url: str = Field("http://127.0.0.1:8001", description="where browsers reach the notifier")
    leaderboard_url: str = Field("http://127.0.0.1:8002", description="where the gateway reaches the leaderboard")
    mailer_url: str = Field("http://127.0.0.1:8003", description="where the gateway reaches the mailer")
    tasks_days: float = Field(30.0, gt=0, description="how long finished tasks are kept")
    idempotency_hours: float = Field(24.0, gt=0, description="how long idempotency keys are kept")
    dead_letter_body_days: float = Field(7.0, gt=0, description="how long the body of a replayed dead letter is kept")
    dead_letter_days: float = Field(
        90.0, gt=0, description="how long a dead letter waits for a decision; then it is deleted, with a warning"
    )
    dead_letter_record_days: float = Field(
        365.0, gt=0, description="how long the record of a dead letter is kept that was replayed or deleted"
    )
    audit_days: float = Field(365.0, gt=0, description="how long it is kept who did what")
    broadcast_content_days: float = Field(
        30.0, gt=0, description="how long the content of a finished broadcast is kept, and what failed can be retried"
    )
    broadcast_days: float = Field(365.0, gt=0, description="how long a finished broadcast and its counts are kept")
    attachment_days: float = Field(
        30.0, ge=2, description="how long an attachment is kept after its upload and after the last mail that needs it"
    )
    attachment_quota: int = Field(1_073_741_824, gt=0, description="bytes of attachments that one key may have")
    attachment_total: int = Field(10_737_418_240, gt=0, description="bytes of attachments of all keys together")
    revoked_key_days: float = Field(365.0, gt=0, description="how long a revoked API key is listed")
    unrouted_days: float = Field(
        7.0, gt=0, description="how long an event of a type that no queue is bound to is kept for a replay"
    )
    unrouted_limit: int = Field(100_000, ge=1, description="such events kept at most; the oldest are deleted first")
    republish_minutes: float = Field(
        60.0,
        gt=0,
        description="how long a task may wait without an outcome; then its message is published again, and the mailer"
        " answers with what it did, or does it",
    )
    outbox_limit: int = Field(1_000_000, gt=0, description="messages waiting for the broker before requests get 503")
    max_body: int = Field(1_048_576, gt=0, description="bytes of a request body at most")
    bodies_in_hand: int = Field(
        96 * 1024 * 1024,
        ge=32 * 1024 * 1024,
        description="bytes of all uploads and other large bodies together that wait for their answer; beyond it 503."
        " A body costs up to twice its size in memory",
    )
    public_url: str = Field(
        "http://127.0.0.1:8000",
        pattern=r"^https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?$",
        description="where subscribers reach this gateway; stands in the links of mails, so it must last",
    )
    public_lists: str = Field(
        "newsletter=Newsletter",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}=[^,=]+(,[A-Za-z0-9][A-Za-z0-9._-]{0,63}=[^,=]+)*$",
        description="the lists that anybody may join at /subscribe: name=Title,name=Title",
    )
    form_per_hour: int = Field(
        2000,
        ge=1,
        description="sign-ups at /subscribe in an hour at most; more people are asked to come back",
    )
    form_domain_per_hour: int = Field(500, ge=1, description="of these, at one mail domain")
    confirm_days: float = Field(
        7.0, gt=0, description="how long the link that confirms a subscription works; who has not by then is forgotten"
    )
    bounce_days: float = Field(90.0, gt=0, description="how long an address is suppressed after a hard bounce")
    broadcast_window: int = Field(
        2000, ge=1, le=100_000, description="recipients of one broadcast that may be under way at once"
    )
    rate_limit: int = Field(
        10_000, ge=0, description="requests a second for each key, and twice as many at once; 0 is no limit"
    )
    boards_per_hour: int = Field(
        1000, ge=0, description="new leaderboards that scores of keys of one name may begin in an hour"
    )
    boards_per_key: int = Field(
        10_000, ge=0, description="leaderboards that scores of keys of one name may begin in all"
    )
    boards_limit: int = Field(100_000, ge=1, description="leaderboards at most; the same number for the leaderboard")

    @field_validator("link_keys")
    @classmethod
    def _long_keys(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and min(map(len, value.get_secret_value().split(","))) < 32:
            raise ValueError("every key must have 32 characters or more")
        return value

    @property
    def mailer_key(self) -> str:
        """Return what the gateway and the mailer sign for one another with."""
        return service_key(self.token_key.get_secret_value(), "mailer")

    @property
    def link_key_ring(self) -> list[str]:
        """Return the keys of links in mails, the current one first."""
        return (self.link_keys or self.token_key).get_secret_value().split(",")

    @property
    def list_titles(self) -> dict[str, str]:
        """Return the title of each public list by its name; the first one is the usual one."""
        return dict(pair.split("=") for pair in self.public_lists.split(","))
