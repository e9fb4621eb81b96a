"""Only the entry of a kind names its messages."""

import re
from pathlib import Path

from bellhop.contracts.kinds import KINDS, kind_of_queue
from bellhop.contracts.tasks import Lane

ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"""["'](mail\.requested|mail\.cancelled|mail\.cancel|mail\.normal|mail\.bulk|mail\.urgent)["']"""
                   r"""|["']?kind["']?\s*[:=]=?\s*["']mail["']""")  # fmt: skip
ALLOWED = {
    "bellhop/contracts/kinds.py",  # the entry
    "bellhop/cli/asyncapi.py",  # a description of each message, for people
    "bellhop/demo/mail.py",  # a client
}


def test_only_the_entry_of_a_kind_names_its_messages() -> None:
    """Whatever handles tasks of every kind asks the table."""
    found = {
        path.relative_to(ROOT).as_posix()
        for folder in ("bellhop", "services")
        for path in (ROOT / folder).rglob("*.py")
        if "migrations" not in path.parts and NAMED.search(path.read_text())
    }
    assert found == ALLOWED


def test_no_two_kinds_share_a_queue() -> None:
    """The queue of a dead letter tells the kind of its task."""
    queues = [queue for kind in KINDS.values() for queue in kind.work_queues]
    assert len(queues) == len(set(queues))
    assert all(kind_of_queue(kind.queues[lane]) is kind for kind in KINDS.values() for lane in Lane)
