"""The mailer: consumes mail tasks, sends the mails by a relay, reports their outcomes."""
