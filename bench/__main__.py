"""`python -m bench` runs every benchmark, one after the other; `python -m bench ranks` only that one.

Further arguments are the benchmark's own: `python -m bench ranks --players 100000`. All of them take half an hour and
more, most of it the broadcast: `python -m bench broadcast --recipients 50000` for less.
"""

import subprocess
import sys

BENCHES = {
    "accept": "mails and scores accepted over HTTP, beside a route that does nothing, and Flask with Celery",
    "publish": "confirmed publishes, beside aio-pika; consuming and pulling",
    "mail": "queue -> SMTP -> outcome, beside Celery and smtplib",
    "latency": "POST to mail in the SMTP server's hand, at 200 a second",
    "urgent": "urgent mail behind 100,000 bulk mails",
    "broadcast": "a mail to 1,000,000 subscribers: rate, and memory of gateway and mailer",
    "ranks": "scores applied and ranks read, beside Redis (needs redis-server); read over HTTP",
    "growth": "lists, accepts and claims beside 2,000,000 tasks and 10,000,000 inbox rows, SQLite and PostgreSQL",
    "fanout": "one event to many browsers, beside Nchan (needs nginx with Nchan)",
}


def main(arguments: list[str]) -> int:
    """Run each in a process of its own, so that none inherits another's memory; return 1 if any failed."""
    names, own = (arguments[:1], arguments[1:]) if arguments else (list(BENCHES), [])
    if names[0] not in BENCHES:
        print(__doc__)
        print("\n".join(f"    {name:10}{what}" for name, what in BENCHES.items()))
        return 2
    failed = []
    for name in names:
        print(f"\n=== {name}: {BENCHES[name]}", flush=True)
        if subprocess.run([sys.executable, "-m", f"bench.{name}", *own], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"\nnot measured: {', '.join(failed)}; the reason stands above")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
