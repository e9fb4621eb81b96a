"""The topology of the composed system: `python -m bellhop.cli.container_topology`, before the services start.

RabbitMQ loads its definitions when it boots. On a running broker this command applies the topology of a new version,
and removes what only an earlier version had. Policies, which an operator may have changed, stay.
"""

import asyncio
from pathlib import Path

from bellhop.amqp import applying
from bellhop.amqp.topology import TopologyError
from bellhop.local.node import VHOST

URL = Path("/run/secrets/bellhop/management-url")


def main() -> None:
    """Apply the topology, and print what was removed."""
    try:
        done = asyncio.run(applying.apply(URL.read_text().strip(), VHOST, keep_policies=True))
    except (OSError, TopologyError) as error:
        raise SystemExit(f"bellhop: the topology could not be applied: {error}") from None
    print("RabbitMQ has the topology of this version.", *done.lines, sep="\n")


if __name__ == "__main__":
    main()
