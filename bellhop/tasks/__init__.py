"""Parts of workers of all kinds of tasks: claim inbox, outcomes, lanes, breaker, send rate."""
