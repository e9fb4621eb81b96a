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
CONNECTIONS = Gauge("bellhop_mailer_busy_connections", "Mails on their way to a relay right now")
RELAY_UP = Gauge("bellhop_mailer_relay_up", "1 while a relay gets mail, 0 while it is left alone", ["relay"])
FAILOVERS = Counter("bellhop_mailer_failovers", "Mails that another relay was tried with at once", ["relay"])
DEFERRED = Counter("bellhop_mailer_deferred", "Mails that wait for their turn, by kind of limit", ["limit"])
SLOWED = Counter("bellhop_mailer_slowed", "How often a limit was lowered or paused by what servers said", ["limit"])
