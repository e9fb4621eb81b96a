"""The gateway's settings."""

from pydantic import Field, SecretStr, field_validator

from bellhop.catalog import PORTS
from bellhop.settings import LiveSettings
from bellhop.web.tokens import service_key


class Settings(LiveSettings):
    """What only the gateway needs."""

    database_url: SecretStr = Field(description="sqlite+aiosqlite:///file or postgresql+asyncpg://…")
    port: int = Field(PORTS["gateway"], ge=0, le=65535, description="port to listen on for HTTP")
    admin_key: SecretStr = Field(description="API key with the scope `admin`; `make admin-key` prints it")
    link_keys: SecretStr | None = Field(
        None,
        description="keys for the links in mails, separated by commas: the first one signs, all of them verify. Without"
        " them the token key is used, and a new token key makes all earlier links invalid",
    )
    management_url: SecretStr | None = Field(
        None,
        description="RabbitMQ's management API, used by /v1/system: http://user:password@host:15672; the user"
        " needs the tag `monitoring`",
    )
    notifier_url: str = Field("http://127.0.0.1:8001", description="URL of the notifier for browsers")
    leaderboard_url: str = Field("http://127.0.0.1:8002", description="URL of the leaderboard for the gateway")
    mailer_url: str = Field("http://127.0.0.1:8003", description="URL of the mailer for the gateway")
    tasks_days: float = Field(30.0, gt=0, description="days that finished tasks are kept")
    idempotency_hours: float = Field(24.0, gt=0, description="hours that idempotency keys are kept")
    dead_letter_body_days: float = Field(7.0, gt=0, description="days that the body of a replayed dead letter is kept")
    dead_letter_days: float = Field(
        90.0, gt=0, description="days that a dead letter without a decision is kept; then it is deleted with a warning"
    )
    dead_letter_record_days: float = Field(
        365.0, gt=0, description="days that the record of a replayed or deleted dead letter is kept"
    )
    audit_days: float = Field(365.0, gt=0, description="days that entries of the audit log are kept")
    broadcast_content_days: float = Field(
        30.0,
        gt=0,
        description="days that the content of a finished broadcast is kept and its failed mails can be retried",
    )
    broadcast_days: float = Field(365.0, gt=0, description="days that a finished broadcast and its counts are kept")
    attachment_days: float = Field(
        30.0, ge=2, description="days that an attachment is kept after its upload and after the last mail that needs it"
    )
    attachment_quota: int = Field(1_073_741_824, gt=0, description="maximum bytes of attachments of one key")
    attachment_total: int = Field(10_737_418_240, gt=0, description="maximum bytes of attachments of all keys together")
    revoked_key_days: float = Field(365.0, gt=0, description="days that a revoked API key is listed")
    unrouted_days: float = Field(
        7.0, gt=0, description="days that an event of a type without a bound queue is kept for a replay"
    )
    unrouted_limit: int = Field(
        100_000, ge=1, description="maximum number of such events; the oldest are deleted first"
    )
    republish_minutes: float = Field(
        60.0,
        gt=0,
        description="minutes that a task may wait without an outcome; then its message is published again, and the"
        " mailer repeats the outcome, or sends the mail if it was not sent",
    )
    outbox_limit: int = Field(
        1_000_000, gt=0, description="maximum number of messages in the outbox; beyond it requests get 503"
    )
    max_body: int = Field(1_048_576, gt=0, description="maximum bytes of a request body")
    bodies_in_hand: int = Field(
        96 * 1024 * 1024,
        ge=32 * 1024 * 1024,
        description="maximum bytes of all large bodies that are being processed; beyond it 503. A body uses up to twice"
        " its size in memory",
    )
    public_url: str = Field(
        "http://127.0.0.1:8000",
        pattern=r"^https?://[A-Za-z0-9.:\[\]-]+(/[A-Za-z0-9._~/-]*)?$",
        description="URL of the gateway for subscribers; part of the links in mails, so it must stay valid",
    )
    public_lists: str = Field(
        "newsletter=Newsletter",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}=[^,=]+(,[A-Za-z0-9][A-Za-z0-9._-]{0,63}=[^,=]+)*$",
        description="lists that are open for sign-up at /subscribe: name=Title,name=Title",
    )
    form_per_hour: int = Field(
        2000,
        ge=1,
        description="maximum number of sign-ups at /subscribe in an hour; further people are asked to try again later",
    )
    form_domain_per_hour: int = Field(500, ge=1, description="maximum number of these sign-ups for one mail domain")
    confirm_days: float = Field(
        7.0,
        gt=0,
        description="days that the link to confirm a subscription works; then an unconfirmed sign-up is deleted",
    )
    bounce_days: float = Field(90.0, gt=0, description="days that an address is suppressed after a hard bounce")
    broadcast_window: int = Field(
        2000, ge=1, le=100_000, description="maximum number of mails of one broadcast that are queued or being sent"
    )
    rate_limit: int = Field(
        10_000, ge=0, description="requests a second for each key, with bursts of twice as many; 0 is no limit"
    )
    boards_per_hour: int = Field(
        1000, ge=0, description="maximum number of leaderboards that scores of keys of one name may create in an hour"
    )
    boards_per_key: int = Field(
        10_000, ge=0, description="maximum number of leaderboards that scores of keys of one name may create in total"
    )
    boards_limit: int = Field(
        100_000, ge=1, description="maximum number of leaderboards; set the same number for the leaderboard"
    )

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
