"""The whole system as `bellhop up` starts it, and a real browser."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.browser import chromium
from tests.browser.chromium import Page
from tests.services.test_run_up import Run


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Run]:
    """Everything, up."""
    run = Run(tmp_path)
    try:
        await run.start()
        yield run
    finally:
        run.end()


@pytest.fixture
def browser() -> str:
    """The browser's program."""
    program = chromium.find()
    if program is None:
        sentence = "Chromium is not installed: run 'apt-get install chromium' as root"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    return program


@pytest.fixture
async def page(browser: str) -> AsyncIterator[Page]:
    """A tab of a browser in which no page may run a script."""
    async with chromium.page(browser, scripts=False) as tab:
        yield tab


@pytest.fixture
async def scripted(browser: str) -> AsyncIterator[Page]:
    """A tab of a browser as most people have it."""
    async with chromium.page(browser, scripts=True) as tab:
        yield tab


@pytest.fixture
def pictures() -> Iterator[dict[str, bytes]]:
    """Pictures of the pages by name; the folder BELLHOP_PICTURES, where there is one, keeps them."""
    taken: dict[str, bytes] = {}
    yield taken
    if folder := os.environ.get("BELLHOP_PICTURES"):
        for name, picture in taken.items():
            (Path(folder) / name).write_bytes(picture)
