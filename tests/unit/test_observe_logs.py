"""What stands in the log, and what never does."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from bellhop.observe.logs import configure_logging, get_logger, redact
from bellhop.settings import ServiceSettings
from bellhop.web import tokens
from bellhop.web.auth import new_key


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leave logging as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    root.setLevel(level)
    structlog.reset_defaults()


def configure(log_format: str) -> None:
    configure_logging(
        "test",
        ServiceSettings(
            amqp_url="amqp://a",
            database_url="sqlite://",
            token_key="k" * 32,
            port=0,
            log_format=log_format,
            instance="i",
        ),
    )


def lines(capsys: pytest.CaptureFixture[str]) -> list[Any]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_json_lines_hold_event_and_facts(capsys: pytest.CaptureFixture[str]) -> None:
    """One line, one object: the sentence, its facts, and who said it when."""
    configure("json")
    get_logger("a.b").info("message %s published", 5, queue="mail.bulk")
    [line] = lines(capsys)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "message 5 published",
        "queue": "mail.bulk",
        "level": "info",
        "logger": "a.b",
        "service": "test",
        "instance": "i",
    }


def test_the_standard_library_comes_out_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    """What libraries log has the same form, with `extra` as facts and the traceback in it."""
    configure("json")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("some.library").exception("it is %s", "bad", extra={"task_id": "t"})
    [line] = lines(capsys)
    assert (line["event"], line["level"], line["service"], line["task_id"]) == ("it is bad", "error", "test", "t")
    assert "ValueError: broken" in line["exception"]


def test_the_level_is_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    """Below the level nothing comes out, and chatty libraries speak from warnings on."""
    configure("json")
    get_logger("a").debug("no")
    logging.getLogger("pika.adapters").info("no")
    logging.getLogger("pika").warning("yes")
    assert [line["event"] for line in lines(capsys)] == ["yes"]


KEY = new_key()
TOKEN = tokens.mint("k" * 32, "ada", 60, "stream", channels=["a"])
SECRETS = {
    f"using {KEY}": f"using {KEY[:11]}_***",
    f"Authorization: Bearer {'x' * 20}": "Authorization: Bearer ***",
    f"/v1/stream?token={TOKEN}&x=1": "/v1/stream?token=***&x=1",
    "amqp://gateway:s3cr3t@host:5672/": "amqp://gateway:***@host:5672/",
    "amqps://a:p@ss@host/": "amqps://a:***@host/",
    "postgresql+asyncpg://bellhop:pass:word@db/bellhop": "postgresql+asyncpg://bellhop:***@db/bellhop",
    "redis://:only-password@host": "redis://:***@host",
}


@pytest.mark.parametrize("text", SECRETS, ids=range(len(SECRETS)))  # random texts would be no names for tests
def test_secrets_are_masked(text: str) -> None:
    """Passwords in URLs, keys and tokens do not come out; what surrounds them does."""
    assert redact(text) == SECRETS[text]


@pytest.mark.parametrize("text", ["http://localhost:8000/a", "a@b.example", "2026-01-01 10:00", "a bearer of news"])
def test_what_is_no_secret_is_left_alone(text: str) -> None:
    """Ordinary text with colons and at signs stays as it is."""
    assert redact(text) == text


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_secrets_are_masked_wherever_they_stand(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In the event, in a fact, nested in one, in an argument, and in a traceback."""
    configure(log_format)
    log = get_logger("a")
    log.info(f"with {KEY}", url="amqp://a:s3cr3t@h", headers={"authorization": f"Bearer {TOKEN}"})
    logging.getLogger("b").warning("connecting to %s", "amqp://a:s3cr3t@h")
    try:
        raise ConnectionError("postgresql://a:s3cr3t@h refused")
    except ConnectionError:
        log.exception("no database")
    output = capsys.readouterr().out
    assert output.count("***") >= 5
    for secret in ("s3cr3t", KEY[12:], TOKEN):
        assert secret not in output


def test_a_long_line_is_masked_in_no_time() -> None:
    """Text that was made to be slow to search is not."""
    for piece in ("a", "://", "bh_", "bearer ", "eyJ", "eyJ.", "://a:"):
        redact(piece * (200_000 // len(piece)))


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_client_cannot_write_lines_of_its_own(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Line breaks and terminal escapes in a text are escaped, in the event and in facts."""
    configure(log_format)
    get_logger("a").info("path /a\r\n2026 forged \x1b[2J", path="b\r\nforged")
    output = capsys.readouterr().out
    assert output.count("\n") == 1
    assert "\r" not in output
    assert "\x1b[2J" not in output
