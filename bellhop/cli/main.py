"""The `bellhop` command."""

import sys

import typer

from bellhop.cli import keys, topology
from bellhop.cli.errors import CannotRun

commands = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="One HTTP gateway in front of RabbitMQ: mail, live notifications, leaderboards.",
)

commands.add_typer(topology.commands, name="topology")
commands.add_typer(keys.commands, name="keys")


# Each command imports what it needs, so that `--help` and `admin-key` start fast.


@commands.command()
def up() -> None:
    """Run everything on this machine, in the foreground, until Ctrl-C."""
    from bellhop.local.up import up as run

    run()


@commands.command("admin-key")
def admin_key() -> None:
    """Print the admin key of the Bellhop that runs here, by `bellhop up` or by `docker compose up`."""
    from bellhop.cli.settings import UpSettings
    from bellhop.local.checkout import find

    print(find(UpSettings.load()).admin_key)


@commands.command()
def mailbox() -> None:
    """Run only the development mailbox: SMTP on port 1025, pages and API on 8025."""
    from bellhop.cli.settings import UpSettings
    from bellhop.local.mailbox import run

    settings = UpSettings.load()
    run(settings.mailbox_smtp_port, settings.mailbox_http_port)


@commands.command()
def demo() -> None:
    """Drive a running Bellhop over HTTP, and count the outcomes of everything that it accepted."""
    from bellhop.demo.run import demo as run

    run()


@commands.command()
def asyncapi() -> None:
    """Print the messages of Bellhop as an AsyncAPI 3.0 document."""
    import json

    from bellhop.cli.asyncapi import document

    print(json.dumps(document(), indent=2))


def app() -> None:
    """Run the command; print a `CannotRun` and exit with 1."""
    try:
        commands()
    except CannotRun as error:
        print(f"bellhop: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    app()
