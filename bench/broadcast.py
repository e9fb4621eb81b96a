"""A broadcast to a million people: how fast it goes, and whether the gateway and the mailer keep their size meanwhile.

    python -m bench.broadcast                   # 1,000,000 recipients: about 15 minutes
    python -m bench.broadcast --recipients 50000

The whole way: people come in by `POST /v1/subscribers/import` (CSV, 20,000 a request), then one `POST /v1/broadcasts`.
The gateway makes a task for each and publishes it, one mailer process sends it to smtp-sink, and its outcome comes back
into the ledger. Resident memory of both processes is read once a second, later every five, until the end. Printed are

    first     when a twentieth of the mails is out: by then every pool is warm
    max       from then on
    last      at the end; wanted is that neither differs from the first by more than 50 MB
"""

import argparse
import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx

from bellhop.local.ports import free_ports
from bench import stage
from bench.sink import smtp_sink

IMPORT = 20_000
WARM = 0.05
WANTED_MB = 50
LIST = "newsletter"
MAIL = {
    "list": LIST,
    "subject": "News for {{ subscriber.name }}",
    "text": "Hello {{ subscriber.name }},\n\n" + "This is what happened this week. " * 30,
    "html": "<p>Hello {{ subscriber.name }},</p>" + "<p>This is what happened this week.</p>" * 30,
}


@dataclass
class Memory:
    """The resident memory of one process over time, in MB."""

    pid: int
    first: float = 0.0
    samples: list[float] = field(default_factory=list)

    def look(self, *, warm: bool) -> float:
        """Take a sample; those before `warm` do not count."""
        now = stage.memory(self.pid) / 1e6
        if warm:
            self.first = self.first or now
            self.samples.append(now)
        return now

    def __str__(self) -> str:
        highest, last = max(self.samples), self.samples[-1]
        flat = max(highest - self.first, abs(last - self.first)) <= WANTED_MB
        verdict = "flat" if flat else f"not flat: more than {WANTED_MB} MB between"
        return f"first {self.first:6.0f}  max {highest:6.0f}  last {last:6.0f} MB  {verdict}"


def people(count: int) -> Iterator[str]:
    """Yield CSV files that together have `count` people."""
    numbers = iter(range(count))
    while part := list(itertools.islice(numbers, IMPORT)):
        rows = (f"reader{n:07d}@example.com,Reader {n},{n % 97}\n" for n in part)
        yield "email,name,shelf\n" + "".join(rows)


def bring_in(client: httpx.Client, count: int) -> None:
    """Import everybody."""
    began, new = time.monotonic(), 0
    for file in people(count):
        answer = client.post(
            "/v1/subscribers/import",
            params={"lists": LIST, "confirmed": "true"},
            content=file.encode(),
            headers={"Content-Type": "text/csv"},
        )
        answer.raise_for_status()
        new += answer.json()["new"]
        seconds = time.monotonic() - began
        print(f"\rimported {new:,} of {count:,}, {new / seconds:,.0f}/s  ", end="", flush=True)
    print()
    if new != count:
        raise SystemExit(f"only {new:,} of {count:,} people were taken")


def send(client: httpx.Client, count: int, watched: dict[str, Memory], patience: float) -> float:
    """Send the broadcast; return how many seconds it took."""
    began = time.monotonic()
    answer = client.post("/v1/broadcasts", json=MAIL)
    answer.raise_for_status()
    place = answer.headers["Location"]
    while True:
        document = client.get(place).raise_for_status().json()
        counts, seconds = document.get("counts", {}), time.monotonic() - began
        done = counts.get("sent", 0)
        sizes = "  ".join(f"{name} {m.look(warm=done >= WARM * count):.0f} MB" for name, m in watched.items())
        # Lines and not one that changes: an unwatched run leaves its course in the log.
        print(f"{seconds:6.0f} s  sent {done:9,}  {document.get('rate_per_second', 0):7,.0f}/s  {sizes}", flush=True)
        if document["state"] == "finished":
            break
        if seconds > patience:
            raise SystemExit(f"not finished after {seconds:.0f} s: {counts}")
        time.sleep(1.0 if seconds < 30 else 5.0)
    if done != count:
        raise SystemExit(f"not everybody got it: {counts}")
    return time.monotonic() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipients", type=int, default=1_000_000)
    parser.add_argument("--smtp-sink", default="", metavar="PATH")
    parser.add_argument("--patience", type=float, default=3600.0, help="seconds after which to give up")
    asked = parser.parse_args()
    print(stage.heading())
    smtp_port = free_ports(1)[0]
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(stage.broker())
        stack.enter_context(smtp_sink(smtp_port, asked.smtp_sink))
        gateway = stack.enter_context(stage.gateway(place))
        _, mailer = stack.enter_context(stage.mailer(place, smtp_port))
        client = stack.enter_context(
            httpx.Client(
                base_url=f"http://127.0.0.1:{gateway.port}",
                headers={"Authorization": f"Bearer {gateway.key}"},
                timeout=120,
                trust_env=False,
            )
        )
        bring_in(client, asked.recipients)
        watched = {"gateway": Memory(gateway.pid), "mailer": Memory(mailer.pid)}
        seconds = send(client, asked.recipients, watched, asked.patience)
    print(f"broadcast to {asked.recipients:,}: {seconds:,.0f} s, {asked.recipients / seconds:,.0f} mails/s")
    for name, sizes in watched.items():
        print(f"memory of the {name:8} {sizes}")


if __name__ == "__main__":
    main()
