"""A database that cannot be used is one thing, whatever the reason: services wait for it and say why."""

from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from bellhop.sql.database import Database, DatabaseUnavailable
from bellhop.sql.migrations import migrate


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"password": "wrong"}, "password authentication failed"),
        ({"database": "no_such_database"}, "does not exist"),
        ({"port": 1}, "does not answer"),
    ],
)
async def test_a_database_that_does_not_let_us_in_is_away(
    postgresql: str, wrong: dict[str, object], reason: str
) -> None:
    """A wrong password, a database that is not made yet, a server that is down: none is a crash."""
    url = make_url(f"{postgresql}/postgres").set(**wrong)  # type: ignore[arg-type]
    database = Database(url.render_as_string(hide_password=False))
    with pytest.raises(DatabaseUnavailable, match=reason):
        async with database.read():
            pass
    await database.close()


async def test_verified_tls_uses_the_systems_authorities(
    postgresql: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`ssl=verify-full` needs no file of one's own; a server that cannot do TLS is told in one sentence."""
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    database = Database(f"{postgresql}/postgres?ssl=verify-full")
    with pytest.raises(DatabaseUnavailable, match="SSL"):
        async with database.read():
            pass
    await database.close()


async def test_a_schema_that_may_not_be_made_is_told_in_a_sentence(database_url: str, tmp_path: Path) -> None:
    """A missing right is waited for like a missing server: somebody has to grant it first."""
    if not database_url.startswith("postgresql"):
        pytest.skip("SQLite has no rights")
    database = Database(database_url)
    async with database.write() as connection:
        await connection.exec_driver_sql("DROP SCHEMA public CASCADE")
    await database.close()
    with pytest.raises(DatabaseUnavailable, match=r"tables of services\.mailer cannot be created: .*schema"):
        await migrate(database_url, "services.mailer")
