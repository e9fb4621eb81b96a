"""What every worker of tasks needs, whatever their kind: claim inbox, outcomes, lanes, breaker, send rate."""
