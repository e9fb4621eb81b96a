"""One setting names one broker, or all nodes of a cluster."""

import pytest

from bellhop.amqp.urls import split_urls


@pytest.mark.parametrize(
    ("setting", "urls"),
    [
        ("amqp://a/v", ["amqp://a/v"]),
        ("amqp://a/v,amqps://b/v", ["amqp://a/v", "amqps://b/v"]),
        (" amqp://a/v, amqp://b/v\n", ["amqp://a/v", "amqp://b/v"]),
        ("amqp://u:p,q@a/v,amqp://u:p,q@b/v", ["amqp://u:p,q@a/v", "amqp://u:p,q@b/v"]),
    ],
)
def test_commas_separate_urls_and_nothing_else(setting: str, urls: list[str]) -> None:
    """A comma stands between two URLs, and may stand inside a password."""
    assert split_urls(setting) == urls
