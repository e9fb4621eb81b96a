"""The metrics of the gateway."""

from prometheus_client import Counter, Gauge

OUTBOX = Gauge("bellhop_gateway_outbox_messages", "Messages that were due and not published at the last count")
UNROUTED = Counter("bellhop_gateway_unrouted", "Events kept because no queue is bound to their type")
NOT_SHOWN = Counter("bellhop_gateway_not_shown", "Outcomes that the notifier's stream did not take")
DEAD_LETTERS = Counter("bellhop_gateway_dead_letters", "Dead letters stored")
EXPIRED = Counter("bellhop_gateway_expired_rows", "Rows deleted or erased because their retention was over", ["what"])
