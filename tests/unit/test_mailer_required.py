"""Which names of `data` a template requires: only those that every rendering reads."""

import pytest
from jinja2 import StrictUndefined, UndefinedError
from jinja2.sandbox import SandboxedEnvironment

from services.mailer.required import required

ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined)

NEEDED = [
    ("Hello {{ data.name }}", {"name"}),
    ('{{ data["name"] | upper }} {{ data.order.id }}', {"name", "order"}),
    ("{{ data.greeting | default(data.name) }}", {"name"}),
    ("{% if data.paid %}{{ data.receipt }}{% endif %}", {"paid"}),
    ("{% for item in data.list %}{{ item.name }}{{ data.currency }}{% endfor %}", {"list"}),
    ("{{ data.a if data.b else data.c }}", {"b"}),
    ("{{ data.a and data.b }}", {"a"}),
    ("{% set title = data.title %}{{ title }}", {"title"}),
]
OPTIONAL = [
    "plain",
    "{{ data.name | default('you') }}",
    "{{ data.name | d('you') | upper }}",
    "{% if data.name is defined %}{{ data.name }}{% endif %}",
    "{{ data.name if data.name is defined else 'you' }}",
    "{% for key, value in data.items() %}{{ key }}{% endfor %}",
    "{{ data.get('name', 'you') }}",
    "{% set data = {'name': 'you'} %}{{ data.name }}",
    "{% macro row() %}{{ data.name }}{% endmacro %}",
]


@pytest.mark.parametrize(("source", "names"), NEEDED)
def test_what_every_rendering_reads_is_required(source: str, names: set[str]) -> None:
    """And the template does raise without each of them."""
    assert required(ENVIRONMENT.parse(source)) == names
    for missing in names:
        data = {name: {"id": 1} if name == "order" else "1" for name in names - {missing}}
        with pytest.raises(UndefinedError):
            ENVIRONMENT.from_string(source).render(data=data)


@pytest.mark.parametrize("source", OPTIONAL)
def test_what_may_be_left_out_is_not_required(source: str) -> None:
    """And the template is rendered without it."""
    assert required(ENVIRONMENT.parse(source)) == set()
    ENVIRONMENT.from_string(source).render(data={})
