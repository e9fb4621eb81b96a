"""The one thing of the topology that a service makes itself: bindings that depend on its own files."""

from collections.abc import Mapping

from pika.channel import Channel


class Bindings:
    """Binds routing keys of one exchange to queues, again after every reconnect. Add it to a `Connection`.

    Nothing is unbound: a message that nobody reacts to any more costs its queue's consumer one look. The user needs
    the right to write the queue and to read the exchange (https://www.rabbitmq.com/docs/access-control).
    """

    def __init__(self, exchange: str, keys: Mapping[str, str]) -> None:
        """`keys` maps routing keys to the names of queues."""
        self._exchange = exchange
        self._keys = keys

    def opened(self, channel: Channel) -> None:
        """Bind. A binding that is there already is none of RabbitMQ's concern."""
        for key, queue in self._keys.items():
            channel.queue_bind(queue, self._exchange, key)

    def closed(self, reason: str) -> None:
        """Bindings are durable: there is nothing to do."""
