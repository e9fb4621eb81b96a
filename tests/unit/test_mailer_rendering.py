"""Templates: files in, mails out, and errors that say where."""

from pathlib import Path

import pytest

from services.mailer.rendering import BadTemplate, RenderingError, Templates, reaction_types
from services.mailer.settings import TEMPLATES

GREETING = """---
subject: Hello {{ data.name }}
on: order.placed
to: "{{ data.email }}"
---
Dear {{ data.name }},
line 7 {{ data.seven }}
--- html ---
<p>{{ data.name }}</p>
line 10 {{ data.ten }}
"""


def folder(path: Path, **files: str) -> Path:
    for name, text in files.items():
        (path / f"{name}.mail").write_text(text)
    return path


def test_values_are_escaped_in_html_alone(tmp_path: Path) -> None:
    """A name with markup is text in the HTML part, and itself in the text part."""
    template = Templates(folder(tmp_path, greeting=GREETING)).get("greeting")
    rendered = template.render({"name": "<b>Ada</b> {{7*7}}", "seven": 7, "ten": 10})
    assert rendered.html is not None
    assert rendered.text is not None
    assert "<p>&lt;b&gt;Ada&lt;/b&gt; {{7*7}}</p>" in rendered.html
    assert "Dear <b>Ada</b> {{7*7}}," in rendered.text


@pytest.mark.parametrize(("missing", "line"), [("seven", 7), ("ten", 10), ("name", 2)])
def test_a_missing_value_is_an_error_with_file_and_line(tmp_path: Path, missing: str, line: int) -> None:
    """The line counts in the file, not in the part."""
    template = Templates(folder(tmp_path, greeting=GREETING)).get("greeting")
    data = {"name": "Ada", "seven": 7, "ten": 10}
    del data[missing]
    with pytest.raises(RenderingError, match=rf"greeting\.mail, line {line}: .*no attribute '{missing}'"):
        template.render(data)


def test_a_line_end_in_a_value_stays_out_of_the_subject(tmp_path: Path) -> None:
    """A subject is one line whatever the data hold."""
    template = Templates(folder(tmp_path, greeting=GREETING)).get("greeting")
    rendered = template.render({"name": "Ada\r\nBcc: eve@example.com", "seven": 7, "ten": 10})
    assert rendered.subject == "Hello Ada Bcc: eve@example.com"


def test_a_template_cannot_reach_python(tmp_path: Path) -> None:
    """The sandbox refuses attributes that lead into the interpreter."""
    text = "---\nsubject: x\n---\n{{ data.__class__.__mro__ }}\n"
    template = Templates(folder(tmp_path, evil=text)).get("evil")
    with pytest.raises(RenderingError, match="unsafe"):
        template.render({})


@pytest.mark.parametrize(
    ("to", "data", "expected"),
    [
        ('"{{ data.email }}"', {"email": "ada@example.com"}, ["ada@example.com"]),
        ('"{{ data.people }}"', {"people": ["a@example.com", "b@example.com", "a@example.com"]},
         ["a@example.com", "b@example.com"]),
        ('"{{ data.people }}"', {"people": [{"email": "a@example.com"}, "b@example.com"]},
         ["a@example.com", "b@example.com"]),
        ('"{{ data.people | map(attribute=\'email\') | list }}"', {"people": [{"email": "a@example.com"}]},
         ["a@example.com"]),
        ("office@example.com", {}, ["office@example.com"]),
        ('"{{ data.user }}@example.com"', {"user": "ada"}, ["ada@example.com"]),
    ],
)  # fmt: skip
def test_to_gives_one_address_or_many(tmp_path: Path, to: str, data: dict[str, object], expected: list[str]) -> None:
    """A lone expression may give a list; each recipient counts once."""
    text = f"---\nsubject: x\non: order.placed\nto: {to}\n---\ntext\n"
    found = Templates(folder(tmp_path, one=text)).get("one").recipients(data)
    assert [address for address, _ in found] == expected


def test_each_of_a_list_has_its_own_data(tmp_path: Path) -> None:
    """A mail knows its recipient, and does not carry the whole list with it."""
    text = (
        '---\nsubject: x\non: book.published\nto: "{{ data.followers }}"\n---\n'
        "{{ data.recipient.name }}: {{ data.title }}\n"
    )
    template = Templates(folder(tmp_path, book=text)).get("book")
    followers = [{"email": "a@example.com", "name": "Ada"}, {"email": "b@example.com", "name": "Bob"}]
    found = template.recipients({"title": "Emma", "followers": followers})
    assert [template.render(data).text for _, data in found] == ["Ada: Emma\n", "Bob: Emma\n"]
    assert all("followers" not in data for _, data in found)


@pytest.mark.parametrize("data", [{}, {"email": 7}, {"email": {"a": 1}}, {"email": [1]}])
def test_to_without_addresses_is_an_error(tmp_path: Path, data: dict[str, object]) -> None:
    """What gives no text is not made into text."""
    template = Templates(folder(tmp_path, greeting=GREETING)).get("greeting")
    with pytest.raises(RenderingError, match="to"):
        template.recipients(data)


def test_reaction_types_are_those_that_templates_name(tmp_path: Path) -> None:
    """`on` is one type or a list; YAML's habit of reading it as a boolean does not matter."""
    folder(tmp_path, greeting=GREETING, plain="---\nsubject: x\n---\ntext\n")
    folder(tmp_path, many='---\nsubject: x\non: [order.paid, order.placed]\nto: "{{ data.email }}"\n---\ntext\n')
    assert reaction_types(tmp_path) == ["order.paid", "order.placed"]
    reacting = Templates(tmp_path).reacting_to("order.placed")
    assert sorted(template.name for template in reacting) == ["greeting", "many"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("no front matter", "must begin with a front matter"),
        ("---\nsubject: x\n", "must begin with a front matter"),
        ("---\nto: a@example.com\n---\nx", "must have a subject"),
        ("---\nsubject: x\nform: y\n---\nx", "not form"),
        ("---\nsubject: x\non: a.b\n---\nx", "belong together"),
        ("---\nsubject: x\non: 'a.*'\nto: a@example.com\n---\nx", "must be an event type"),
        ("---\nsubject: x\n---\n", "needs a text part"),
        ("---\nsubject: x\n---\na\n{% if %}\n", "line 5"),
        ("---\nsubject: '{{'\n---\na\n", "line 2"),
        ("---\nsubject: x\n---\na\n--- text ---\nb\n", "a second text part"),
        ("---\nsubject: [\n---\na\n", "not YAML"),
    ],
)
def test_a_bad_file_is_refused_at_the_start(tmp_path: Path, text: str, reason: str) -> None:
    """The sentence names the file and what is wrong with it."""
    with pytest.raises(BadTemplate, match=reason) as caught:
        Templates(folder(tmp_path, bad=text))
    assert "bad.mail" in str(caught.value)


def test_an_unknown_template_says_which_there_are(tmp_path: Path) -> None:
    """A typing error is found by reading the message."""
    with pytest.raises(RenderingError, match="no template 'greting'; there are: greeting"):
        Templates(folder(tmp_path, greeting=GREETING)).get("greting")


def test_the_templates_that_we_ship_render() -> None:
    """The examples work with and without what is optional in them."""
    templates = Templates(TEMPLATES)
    assert templates.get("welcome").render({"name": "Ada"}).subject == "Welcome, Ada"
    order = {"order": "A-17", "email": "a@example.com", "items": [{"quantity": 2, "name": "tea"}]}
    rendered = templates.get("order-confirmed").render(order)
    assert rendered.text is not None
    assert "- 2 x tea" in rendered.text
    request = templates.get("friend-request").render({"from": "Bob", "email": "a@example.com"})
    assert request.subject == "Bob wants to be your friend"
    book = {
        "genre": "crime",
        "title": "Emma",
        "author": "J. A.",
        "followers": ["a@example.com", {"email": "b@example.com", "name": "Bob"}],
    }
    new_book = templates.get("new-book")
    texts = [new_book.render(data).text or "" for _, data in new_book.recipients(book)]
    assert [text.splitlines()[0] for text in texts] == ["Hello a@example.com,", "Hello Bob,"]
    assert reaction_types(TEMPLATES) == ["book.published", "friend.requested", "order.placed"]
