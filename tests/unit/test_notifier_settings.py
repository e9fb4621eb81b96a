"""The notifier's own settings."""

import pytest
from pydantic import ValidationError

from services.notifier.settings import NotifierSettings

REQUIRED = {"BELLHOP_AMQP_URL": "amqp://nobody/", "BELLHOP_TOKEN_KEY": "k" * 32}


def load(monkeypatch: pytest.MonkeyPatch, **variables: str) -> NotifierSettings:
    for name, value in {**REQUIRED, **variables}.items():
        monkeypatch.setenv(name, value)
    return NotifierSettings()  # type: ignore[call-arg]


def test_types_and_origins_are_lists_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    """As somebody would write them into an environment file."""
    settings = load(
        monkeypatch,
        BELLHOP_LIVE_TYPES="order.placed=orders:{subject}, deploy.done=deploys",
        BELLHOP_LIVE_ORIGINS="https://shop.example, http://localhost:5173",
    )
    assert settings.live_types == {"order.placed": "orders:{subject}", "deploy.done": "deploys"}
    assert settings.live_origins == ["https://shop.example", "http://localhost:5173"]


@pytest.mark.parametrize("value", ["order.placed", "=x", "order.placed=", "order.placed=orders:{customer}"])
def test_a_broken_type_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """At the start, not when the first such event comes."""
    with pytest.raises(ValidationError):
        load(monkeypatch, BELLHOP_LIVE_TYPES=value)


@pytest.mark.parametrize("value", ["*", "https://*.shop.example", "shop.example", "https://shop.example/", "null"])
def test_an_origin_is_exact(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Wildcards would let in whoever gets hold of any name below."""
    with pytest.raises(ValidationError):
        load(monkeypatch, BELLHOP_LIVE_ORIGINS=value)
