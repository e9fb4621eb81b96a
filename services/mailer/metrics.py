"""What the mailer counts.

A series begins with 0 when the process starts: one that is born with 1 has not increased for Prometheus, and an alert
would not see the first case.
"""

from itertools import product

from prometheus_client import Counter, Gauge, Histogram

from bellhop.contracts.outcomes import State
from bellhop.contracts.tasks import Lane

NO_REPLY = "no reply to the final dot"
CRASH = "crash during an attempt"
STATES = (State.SENT, State.FAILED, State.RETRYING, State.QUEUED, State.CANCELLED, State.SUPPRESSED)
LIMITS = ("domain", "sender", "relay")

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

for _lane, _state in product(Lane, STATES):
    OUTCOMES.labels(_lane.value, _state.value)
for _why in (NO_REPLY, CRASH):
    UNCERTAIN.labels(_why)
for _limit in LIMITS:
    DEFERRED.labels(_limit)
    SLOWED.labels(_limit)
