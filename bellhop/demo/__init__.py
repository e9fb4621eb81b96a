"""`bellhop demo`: drives a running Bellhop over HTTP alone, and counts what became of everything it accepted.

run.py        the table of steps, the progress bars, the verdict
mail.py       mails on three lanes, one long poll, mails that an event sets off
newsletter.py people who sign up, confirm, are mailed and leave
live.py       notifications and the clients that follow them
scores.py     scores, and every rank compared with a plain `sorted()`
api.py        HTTP that does not give up: any service may be killed meanwhile
"""
