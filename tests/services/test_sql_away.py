"""A database that cannot be used is one thing, whatever the reason: services wait for it and say why."""

import pytest
from sqlalchemy.engine import make_url

from bellhop.sql.database import Database, DatabaseAway


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
    with pytest.raises(DatabaseAway, match=reason):
        async with database.read():
            pass
    await database.close()
