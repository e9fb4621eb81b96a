"""The names that Bellhop keeps for itself."""

import pytest

from bellhop.contracts import identity


@pytest.mark.parametrize("name", ["admin", "event", "events", "newsletter", "bounce", "bellhop", "bellhop/x", "Event"])
def test_names_of_ours_are_reserved(name: str) -> None:
    """No key may have the name of an owner of ours, in whatever case."""
    assert identity.is_reserved_name(name)


@pytest.mark.parametrize(
    "source",
    [identity.GATEWAY, identity.MAILER, identity.LEADERBOARD, "/mailer", "bellhop", "bellhop:x", "BELLHOP/gateway"],
)
def test_sources_of_ours_are_reserved(source: str) -> None:
    """No client may publish under a source of ours, those of earlier versions included."""
    assert identity.is_our_source(source)


def test_names_and_sources_of_others_are_free() -> None:
    """What merely looks similar is a client's."""
    assert not any(map(identity.is_reserved_name, ("shop", "eventful", "newsletters", "administrator")))
    assert not any(
        map(identity.is_our_source, ("/shop", "bellhops", "urn:bellhop", "/mailer/2", "https://bellhop.example"))
    )
