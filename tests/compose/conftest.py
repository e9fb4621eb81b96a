"""The composed system as a fixture; without a Docker Engine everything here is skipped, in so many words."""

import os
import secrets
import subprocess
from collections.abc import Iterator

import pytest

from tests.compose.system import System, clean_system

STORIES = ("test_system", "test_front", "test_settings", "test_procedures", "test_cluster")
"""The files in the order in which they meet the one system. The first begins with none and ends with none."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder take minutes and need an engine; one story follows the other."""
    ours = [item for item in items if "tests/compose/" in item.nodeid]
    for item in ours:
        item.add_marker(pytest.mark.compose)
        item.add_marker(pytest.mark.timeout(900))
    ours.sort(key=lambda item: STORIES.index(item.path.stem))
    items[:] = [item for item in items if item not in ours] + ours


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker Engine with Compose."""
    answers = False
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        try:
            answers = subprocess.run(command, capture_output=True, timeout=30).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            answers = False
        if not answers:
            break
    if not answers:
        sentence = "the composed system is not tested: no Docker Engine with Compose answers to 'docker info'"
        if os.environ.get("BELLHOP_COMPOSE_MUST_RUN"):
            pytest.fail(sentence)
        pytest.skip(sentence)


@pytest.fixture(scope="session")
def system(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """One system for all files of tests, not started yet; each file brings it up as it needs it."""
    name = f"bellhop-test-{secrets.token_hex(3)}"
    with clean_system(tmp_path_factory.mktemp("copy"), name) as made:
        yield made
