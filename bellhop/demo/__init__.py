"""`bellhop demo`: uses a running Bellhop over HTTP only, and checks the outcome of every request that it accepted.

run.py        the table of steps, the progress bars, the summary
mail.py       mails on three lanes, one long poll, mails that an event causes
newsletter.py people who sign up, confirm, are mailed and unsubscribe
live.py       notifications, and the clients that follow them
scores.py     scores, and every rank compared with `sorted()`
api.py        HTTP with retries: any service may be killed meanwhile
"""
