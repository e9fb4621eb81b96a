"""Sends mail: takes tasks off their queues, hands them to the relay, reports what became of them."""
