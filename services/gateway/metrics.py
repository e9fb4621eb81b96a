"""What the gateway counts."""

from prometheus_client import Counter, Gauge

OUTBOX = Gauge("bellhop_gateway_outbox_messages", "Messages that were due and not out at the last look")
DEAD_LETTERS = Counter("bellhop_gateway_dead_letters", "Dead letters stored, for somebody to decide about")
EXPIRED = Counter("bellhop_gateway_expired_rows", "Rows deleted or erased because their retention was over", ["what"])
