"""Migrations: what tells whether there is anything to do."""

import asyncio
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from bellhop.catalog import WITH_TABLES
from bellhop.sql.migrations import migrate


@pytest.mark.parametrize("service", WITH_TABLES)
def test_a_migration_s_file_is_named_after_its_revision_and_the_last_is_the_head(service: str) -> None:
    """The look that spares Alembic at a start believes the names of the files."""
    with resources.as_file(resources.files(f"services.{service}") / "migrations") as folder:
        script = ScriptDirectory(str(folder))
        names = sorted(path.name for path in (folder / "versions").glob("*.py"))
    revisions = {Path(str(revision.path)).name: revision.revision for revision in script.walk_revisions()}
    assert revisions == {name: name.partition("_")[0] for name in names}
    assert script.get_heads() == [revisions[names[-1]]]


@pytest.mark.parametrize("service", WITH_TABLES)
def test_a_database_that_is_up_to_date_needs_no_alembic(service: str, tmp_path: Path) -> None:
    """The first start migrates; the next one finds nothing to do, without importing what does it."""
    url = f"sqlite+aiosqlite:///{tmp_path}/x.db"
    asyncio.run(migrate(url, f"services.{service}"))
    code = (
        "import asyncio, sys; from bellhop.sql.migrations import migrate;"
        f" asyncio.run(migrate({url!r}, 'services.{service}')); print('alembic' in sys.modules)"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert again.stdout == "False\n"
