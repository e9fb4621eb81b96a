"""Metrics of the leaderboard."""

from prometheus_client import Counter, Gauge, Histogram

SCORES = Counter("bellhop_leaderboard_scores", "Scores in applied messages, repeated ones included")
CHANGES = Counter("bellhop_leaderboard_changes", "Results that applied scores changed")
UNANNOUNCED = Counter("bellhop_leaderboard_unannounced", "Attempts to announce a change that failed")
BATCH = Histogram("bellhop_leaderboard_batch_seconds", "Time from a batch of messages to its being readable")
LAG = Gauge("bellhop_leaderboard_lag_seconds", "Age of the state that answers show: the time since their as_of")
PENDING = Gauge("bellhop_leaderboard_pending_messages", "Messages taken from the queue that are not applied yet")
ANNOUNCEMENTS = Gauge("bellhop_leaderboard_announcements", "Boards whose change waits to be announced")
LATE = Counter("bellhop_leaderboard_late_scores", "Scores that were accepted before their board was deleted; left out")
