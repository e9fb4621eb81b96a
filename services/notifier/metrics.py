"""Metrics of the notifier."""

from prometheus_client import Counter, Gauge

SUBSCRIBERS = Gauge("bellhop_notifier_subscribers", "Streams, sockets and waiting polls")
DELIVERIES = Counter("bellhop_notifier_deliveries", "Events written to subscribers, live or replayed")
EVICTIONS = Counter("bellhop_notifier_evictions", "Subscribers cut off because they read too slowly")
GAPS = Counter("bellhop_notifier_gaps", "Gaps that were sent to subscribers: events are missing")
REFUSED = Counter("bellhop_notifier_refused", "Subscribers refused because of a limit", ["limit"])
NOT_SHOWN = Counter("bellhop_notifier_not_shown", "Events of the stream that are not shown", ["reason"])
LOG_EVENTS = Gauge("bellhop_notifier_log_events", "Events in the window")
LOG_BYTES = Gauge("bellhop_notifier_log_bytes", "Memory of the window, roughly")
LOG_FIRST = Gauge("bellhop_notifier_log_first_offset", "Oldest offset of the window; -1 if it is empty")
LOG_END = Gauge("bellhop_notifier_log_end_offset", "Newest offset of the window; -1 if it is empty")

# Start at 0: a series that begins with 1 has not increased for Prometheus.
for _limit in ("closing", "process", "subject"):
    REFUSED.labels(_limit)
for _reason in ("copy", "no channel", "foreign", "unreadable"):
    NOT_SHOWN.labels(_reason)
