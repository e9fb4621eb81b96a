"""Sends mail: takes tasks off their queues, hands the mails to the relay, reports their outcomes."""
