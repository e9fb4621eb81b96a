"""What the mailer counts."""

from prometheus_client import Counter, Gauge, Histogram

OUTCOMES = Counter("bellhop_mailer_outcomes", "Outcomes reported, by lane and state", ["lane", "state"])
UNCERTAIN = Counter(
    "bellhop_mailer_uncertain", "Attempts after which a second copy of a mail is possible (RFC 1047)", ["why"]
)
REPLIES = Counter("bellhop_mailer_replies", "Decisions of the relay, by reply code and cause", ["code", "cause"])
AGAIN = Counter("bellhop_mailer_reported_again", "Deliveries of tasks that were over already; nothing was sent")
SECONDS = Histogram(
    "bellhop_mailer_send_seconds",
    "One attempt on an open connection",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600),
)
CONNECTIONS = Gauge("bellhop_mailer_busy_connections", "Connections to the relay that carry a mail")
