"""What the pages name exists in the code, and they name it in plain words."""

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
ALL_PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/**/*.md"))),
]
UNCLEAR = re.compile(
    r"\b(?:nobody|somebody|everybody|anybody|whoever|whatever|wherever|anew|at once|for ever|becomes? of|became of"
    r"|buried|away|troubles?|patience|goodbye|kin|mend(?:ed|s)?|seldom|fate|ladder|rungs?|in vain|stands on|lets in)\b",
    re.IGNORECASE,
)
"""Words with two meanings, or none for a reader whose first language is another one; see docs/glossary.md."""
DECISION = ["Context", "Decision", "Consequences", "Alternatives"]
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


def test_the_calls_of_the_architecture_page_exist() -> None:
    """Each numbered step names a file and its functions; a path has at most six, and visits no file twice."""
    page = (ROOT / "docs/architecture.md").read_text()
    paths = [section for section in page.split("\n## ") if section.startswith("The path of ")]
    assert len(paths) == 3
    for path in paths:
        steps = re.findall(r"^\d\. `([^`]+)`([^:]*):", path, re.MULTILINE)
        assert 1 < len(steps) <= 6
        assert len({file for file, _ in steps}) == len(steps)
        for file, calls in steps:
            code = (ROOT / "services" / file).read_text()
            for name in re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", calls))):
                assert re.search(rf"^ *(?:class|(?:async )?def) {name}\b", code, re.MULTILINE), (file, name)


@pytest.mark.parametrize("page", ALL_PAGES)
def test_the_page_is_written_in_plain_words(page: str) -> None:
    """One meaning for each word."""
    lines = enumerate((ROOT / page).read_text().splitlines(), start=1)
    assert [(number, found.group()) for number, line in lines if (found := UNCLEAR.search(line))] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs/decisions").glob("*.md")), ids=lambda page: page.stem)
def test_a_decision_has_the_form_of_all_decisions(page: Path) -> None:
    """A reader finds the reason in the same place."""
    text = page.read_text()
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == DECISION
    assert re.search(r"^Status: ", text, re.MULTILINE)


def test_every_link_between_pages_leads_somewhere() -> None:
    """To a file, and to a heading of it where the link names one."""
    broken = []
    for page in ALL_PAGES:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]+))?\)", (ROOT / page).read_text()):
            file = (ROOT / page).parent / target if target else ROOT / page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append((page, target, anchor))
    assert broken == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
