"""Tests of this folder start no server: they run in seconds, anywhere."""

from typing import NoReturn

import pytest


@pytest.fixture
def broker() -> NoReturn:
    """Say where a test that needs RabbitMQ belongs."""
    pytest.fail("tests/unit needs no server: move this test to tests/services")


@pytest.fixture
def postgresql() -> NoReturn:
    """Say where a test that needs PostgreSQL belongs."""
    pytest.fail("tests/unit needs no server: move this test to tests/services")
