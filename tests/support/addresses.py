"""A test's system reaches nothing but what the test gave it: no Bellhop that happens to run on the default ports."""

import os

_NOWHERE = "http://127.0.0.1:1"

UNREACHABLE = {
    "BELLHOP_PORT": "0",
    **{
        f"BELLHOP_{name}_URL": _NOWHERE
        for name in ("GATEWAY", "NOTIFIER", "LEADERBOARD", "MAILER", "MAILBOX", "PUBLIC")
    },
}
"""What services take for each address that a test does not give."""

_OF_THE_TESTS = ("BELLHOP_TEST_", "BELLHOP_PICTURES", "BELLHOP_RELIABILITY_PAGE", "BELLHOP_COMPOSE_MUST_RUN")


def isolate() -> None:
    """Forget the caller's settings of Bellhop, and lead every default address nowhere; processes inherit it."""
    for name in list(os.environ):
        if name.startswith("BELLHOP_") and not name.startswith(_OF_THE_TESTS):
            del os.environ[name]
    os.environ.update(UNREACHABLE)


def service_environment() -> dict[str, str]:
    """Return the environment for a service's process: no setting but where nothing is reached."""
    return {name: value for name, value in os.environ.items() if not name.startswith("BELLHOP_")} | UNREACHABLE
