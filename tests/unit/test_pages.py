"""What the pages name exists in the code."""

import re
from pathlib import Path

import pytest

from bellhop.cli.settings import UpSettings

ROOT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "docs/api.md",
    "docs/mail.md",
    "docs/operations.md",
    "docs/reliability.md",
    "docs/architecture.md",
]
VARIABLE = re.compile(r"\bBELLHOP_[A-Z][A-Z_]*[A-Z]\b")


def known_variables() -> set[str]:
    """Return every variable that a settings class has, or that a program or compose.yaml reads by its name."""
    found = {f"BELLHOP_{name.upper()}" for name in UpSettings.model_fields}
    files = [*(ROOT / "bellhop").rglob("*.py"), *(ROOT / "services").rglob("*.py"), *(ROOT / "deploy").rglob("*")]
    for file in [*files, ROOT / "compose.yaml", ROOT / ".ci/run"]:
        if not file.is_file() or "__pycache__" in file.parts:
            continue
        text = file.read_text()
        found |= set(VARIABLE.findall(text))
        if file.name in ("settings.py", "container_secrets.py"):
            found |= {f"BELLHOP_{name.upper()}" for name in re.findall(r"^    ([a-z_]+):", text, flags=re.MULTILINE)}
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_variable_of_the_page_exists(page: str) -> None:
    """A variable that nothing reads would be ignored silently."""
    assert set(VARIABLE.findall((ROOT / page).read_text())) - known_variables() == set()
