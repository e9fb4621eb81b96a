"""`make bench-accept`: mails accepted over HTTP, beside a FastAPI route that does nothing, in one run.

Both servers are one process each; load comes from another process over 64 keep-alive connections. Acceptance is
durable: every 202 follows a commit with `synchronous=FULL`, and the relay publishes with confirms meanwhile.
"""

import orjson

from bellhop.cli.ports import free_ports
from bench import load, stage

SECONDS = 6.0
CONNECTIONS = 64
MAIL = orjson.dumps({"to": "ada@example.com", "subject": "Welcome", "text": "Hello Ada, welcome aboard. " * 8})
SCORES = orjson.dumps([{"board": "b", "player": f"player-{n}", "score": n} for n in range(1000)])


def main() -> None:
    """Measure and print."""
    print(stage.heading())
    with stage.broker() as place:
        port = free_ports(1)[0]
        with stage.process("-m", "bench.nothing", port=port):
            nothing = load.run(
                port, load.request("POST", "/nothing", MAIL, content_type="application/json"),
                connections=CONNECTIONS, seconds=SECONDS,
            )  # fmt: skip
        with stage.gateway(place) as (port, key):
            headers = {"content_type": "application/json", "authorization": f"Bearer {key}"}
            mail = load.run(
                port, load.request("POST", "/v1/mail", MAIL, **headers), connections=CONNECTIONS, seconds=SECONDS
            )
            scores = load.run(
                port, load.request("POST", "/v1/scores", SCORES, **headers), connections=8, seconds=SECONDS
            )
    print(f"do nothing          {nothing.rate:9,.0f}/s  p50 {nothing.percentile(0.5):6.1f} ms  {nothing.statuses}")
    print(f"accept a mail       {mail.rate:9,.0f}/s  p50 {mail.percentile(0.5):6.1f} ms  {mail.statuses}")
    print(f"  ratio             {mail.rate / nothing.rate:9.2f}    (target 0.5)")
    print(f"accept scores       {scores.rate * 1000:9,.0f}/s  p50 {scores.percentile(0.5):6.1f} ms  {scores.statuses}")


if __name__ == "__main__":
    main()
