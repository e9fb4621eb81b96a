"""CSV as spreadsheets and other newsletters write it; a line that cannot be read costs that line."""

import asyncio
from typing import Any

import pytest

from services.gateway.subscribers.people_csv import BadCsv, decoded, people, records


def read(data: bytes | str, charset: str | None = None) -> list[tuple[int, Any]]:
    """Return the records of a file."""
    text, _ = decoded(data.encode() if isinstance(data, str) else data, charset)
    return [(line, values) for line, values in records(text) if values]


ADA = {"email": "ada@example.com", "name": "Ada", "city": "Zürich"}
ROWS = "email;name;city\nada@example.com;Ada;Zürich\n"


@pytest.mark.parametrize(
    ("data", "charset"),
    [
        (ROWS.encode(), None),
        (ROWS.replace(";", ",").encode(), "utf-8"),
        (ROWS.replace(";", "\t").encode("utf-16"), None),
        (ROWS.encode("utf-16-le"), None),
        (ROWS.encode("utf-16-be"), None),
        (ROWS.encode("utf-8-sig"), None),
        (ROWS.encode("cp1252"), None),
        (ROWS.encode("cp1252"), "ISO-8859-1"),
        (("sep=;\r\n" + ROWS.replace("\n", "\r\n")).encode(), None),
        (("\n" + ROWS.replace("\n", "\r")).encode(), None),
        (ROWS.replace("email", "E-Mail Address").replace("name", "Full Name").encode(), None),
        (ROWS.replace("city", "city;;").replace("Zürich", '"Zürich" ;;').encode(), None),
    ],
)
def test_a_file_of_a_spreadsheet_is_read(data: bytes, charset: str | None) -> None:
    """Separators, line ends, encodings, and the names that others give to the columns."""
    assert [values for _, values in read(data, charset)] == [ADA]


def test_each_record_has_the_number_of_its_first_line() -> None:
    """Quotes, line ends and separators within quotes, empty lines and rows, cells left out or added at the end."""
    found = read(
        'email,name,city\nada@example.com,"Lovelace, Ada",London\n\nbob@example.com,"line\nend",\n,,\n'
        '"quo""te@example.com"\nx@example.com,a,b,\ny@example.com,a,b,c'
    )

    assert found == [
        (2, {"email": "ada@example.com", "name": "Lovelace, Ada", "city": "London"}),
        (4, {"email": "bob@example.com", "name": "line\nend"}),
        (7, {"email": 'quo"te@example.com'}),
        (8, {"email": "x@example.com", "name": "a", "city": "b"}),
        (9, "has 4 values for 3 columns"),
    ]


def test_a_stray_quote_costs_one_line() -> None:
    """An inch mark in the middle costs nothing at all."""
    rows = ['a@x.example,5" pipe', 'b@x.example,"5" pipe', 'c@x.example,"open', *["d@x.example,fine"] * 100]
    found = read("\n".join(["email,thing", *rows]))

    assert found[0] == (2, {"email": "a@x.example", "thing": '5" pipe'})
    assert [line for line, values in found if isinstance(values, str)] == [3, 4]
    assert len(found) == 103
    assert found[-1] == (104, {"email": "d@x.example", "thing": "fine"})


def test_an_endless_record_costs_one_line() -> None:
    """However long it is."""
    found = read(f"email,a\nx@example.com,{'x' * 70_000}\ny@example.com,b\n")

    assert [line for line, values in found if isinstance(values, str)] == [2]
    assert found[-1][1] == {"email": "y@example.com", "a": "b"}


def test_attributes_may_come_as_json() -> None:
    """As listmonk exports them; they cannot take the place of the address."""
    found = read('email,attributes\na@example.com,"{""email"": ""x"", ""n"": 1}"\nb@example.com,{x\nc@example.com,x\n')

    assert found[0] == (2, {"email": "a@example.com", "attributes": {"email": "x", "n": 1}})
    assert found[1] == (3, "attributes: begins like a JSON object and is none")
    assert found[2] == (4, {"email": "c@example.com", "attributes": "x"})


def test_a_guess_is_told() -> None:
    """With the line that is not UTF-8."""
    _, note = decoded("email\na@example.com\nü@example.com".encode("cp1252"), None)

    assert note is not None
    assert note.startswith("Line 3 is not UTF-8")
    assert decoded(b"email\n", None) == ("email\n", None)


@pytest.mark.parametrize(
    ("data", "charset", "sentence"),
    [
        (b"", None, "empty"),
        (b"name,city\n", None, "one of them email"),
        (b"email,email\n", None, "each once"),
        (b"email\nx\n\xff\n", "utf-8", "line 3: the file is not utf-8"),
        (b"email\n\x81\n", None, "line 2: the file is not UTF-8 or Windows-1252"),
        (b"email\n", "ebcdic", "not known"),
        (b'"email\n', None, "line 1: opens a quote"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(data: bytes, charset: str | None, sentence: str) -> None:
    """One sentence, with the line where there is one."""
    with pytest.raises(BadCsv, match=sentence):
        read(data, charset)


async def test_other_tasks_get_their_turn_during_an_import() -> None:
    """A large file is read in steps: the event loop runs other tasks every 100 records."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    running = asyncio.create_task(other())
    found = [record async for record in people("email,name\n" + "a\n" * 5_000 + ",\n" * 5_000)]
    running.cancel()

    assert len(found) == 5_000  # rows without a value are no records
    assert turns >= 90


def test_a_record_of_many_lines_is_read_once() -> None:
    """The time grows with the length of a record and not with its square."""
    data = 'email,name\na@example.com,"' + "\n" * 60_000 + 'x"\nb@example.com,B\n'

    found = list(records(data))

    assert [line for line, _ in found] == [2, 60_003]
    assert found[1][1] == {"email": "b@example.com", "name": "B"}
