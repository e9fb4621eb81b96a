"""The metrics of the mailer.

Every series is created with 0 when the process starts: if its first value was 1, Prometheus would see no increase, and
no alert would fire for the first case.
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
REPLIES = Counter("bellhop_mailer_replies", "Final replies of relays, by reply code and cause", ["code", "cause"])
AGAIN = Counter("bellhop_mailer_reported_again", "Deliveries of tasks that were already final; nothing was sent")
SECONDS = Histogram(
    "bellhop_mailer_send_seconds",
    "Duration of one attempt",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 600),
)
CONNECTIONS = Gauge("bellhop_mailer_busy_connections", "Mails that are being sent to a relay")
RELAY_UP = Gauge("bellhop_mailer_relay_up", "1 while a relay gets mail, 0 while its breaker is open", ["relay"])
FAILOVERS = Counter("bellhop_mailer_failovers", "Attempts with another relay, immediately after a failure", ["relay"])
DEFERRED = Counter("bellhop_mailer_deferred", "Mails deferred by a rate limit, by kind of limit", ["limit"])
SLOWED = Counter("bellhop_mailer_slowed", "Times that a limit was lowered or paused after a reply", ["limit"])

for _lane, _state in product(Lane, STATES):
    OUTCOMES.labels(_lane.value, _state.value)
for _why in (NO_REPLY, CRASH):
    UNCERTAIN.labels(_why)
for _limit in LIMITS:
    DEFERRED.labels(_limit)
    SLOWED.labels(_limit)
