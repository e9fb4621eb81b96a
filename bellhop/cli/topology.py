"""`bellhop topology`: print the table of exchanges, queues and bindings, or apply it to a broker."""

import asyncio
import json
from itertools import groupby
from pathlib import Path
from typing import Annotated

import typer

from bellhop.cli.errors import CannotRun

commands = typer.Typer(no_args_is_help=True, help="Exchanges, queues and bindings: one table.")

Vhost = Annotated[str, typer.Option(help="The virtual host.")]

# The table is imported by the commands that need it, so that `--help` starts fast.


@commands.command()
def show() -> None:
    """Print the table."""
    from rich.console import Console

    console = Console()
    for table in tables():
        console.print(table)


@commands.command()
def apply(
    url: Annotated[
        str,
        typer.Option(
            envvar="BELLHOP_MANAGEMENT_URL",
            help="http://user:password@host:15672; as a variable, it does not show in the list of processes.",
        ),
    ],
    vhost: Vhost = "/",
    keep_policies: Annotated[bool, typer.Option(help="Do not change existing policies of Bellhop.")] = False,
) -> None:
    """Bring a running broker to the table, and remove what an earlier version of it had. Safe to repeat.

    Queues, bindings and policies of others are never touched.
    """
    from bellhop.amqp import applying
    from bellhop.amqp.topology import TopologyError

    try:
        done = asyncio.run(applying.apply(url, vhost, keep_policies=keep_policies))
    except TopologyError as error:
        raise CannotRun(
            f"The topology was not applied: {error}. Look at BELLHOP_MANAGEMENT_URL and at the broker."
        ) from (error)
    print(f"applied to the virtual host {vhost}", *done.lines, sep="\n")


@commands.command()
def definitions(
    vhost: Vhost = "/",
    passwords: Annotated[
        Path | None,
        typer.Option(help="Folder with one file a user, named like it: adds users and rights, for a blank broker."),
    ] = None,
) -> None:
    """Print the table as RabbitMQ's definitions.json, to load at boot (`load_definitions`) or to import."""
    from bellhop.amqp import topology

    if passwords is None:
        document = topology.definitions()
        for items in document.values():
            for item in items:
                item["vhost"] = vhost
    else:
        document = topology.boot_definitions(read_passwords(passwords), vhost=vhost)
    print(json.dumps(document, indent=2))


def read_passwords(folder: Path) -> dict[str, str]:
    """Return user -> password; raise `CannotRun` if one is missing."""
    from bellhop.amqp.topology import RIGHTS

    found = {}
    for user in (*RIGHTS, "deploy"):
        try:
            found[user] = (folder / user).read_text().strip()
        except OSError as error:
            raise CannotRun(
                f"{folder / user} cannot be read ({error.strerror}): put the password of the user {user} there."
            ) from None
    return found


def tables() -> list["object"]:
    """Return the tables that `show` prints: exchanges, queues, bindings."""
    from rich.table import Table

    from bellhop.amqp import topology

    exchanges = Table("exchange", "type", "policy", title="Exchanges, all durable", title_justify="left")
    for exchange in topology.EXCHANGES:
        exchanges.add_row(exchange.name, exchange.type, _policy(exchange.policy))
    queues = Table("queue", "type", "policy", title="Queues, all durable", title_justify="left")
    for policy, alike in groupby(topology.QUEUES, key=lambda queue: _policy(queue.policy)):
        for number, queue in enumerate(alike):
            kind = f"{queue.type}, one active consumer" if queue.single_active_consumer else queue.type
            queues.add_row(queue.name, kind, "the same" if number else policy)
    bindings = Table("from", "key", "to", title="Bindings", title_justify="left")
    for binding in topology.BINDINGS:
        kind = "exchange" if binding.to_exchange else "queue"
        bindings.add_row(binding.source, binding.key, f"{kind} {binding.destination}")
    return [exchanges, queues, bindings]


def _policy(policy: dict[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in policy.items())
