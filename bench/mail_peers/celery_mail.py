"""The peer of bench/mail.py: Celery and smtplib, as most Python applications send mail. Runs in a venv of its own.

    python celery_mail.py fill 2000        puts so many tasks on the queue
    celery -A celery_mail worker …         works them off

No result is stored and no outcome reported, which spares Celery what Bellhop does beside sending.
"""

import os
import smtplib
import sys
from email.message import EmailMessage
from email.utils import formatdate, make_msgid

from celery import Celery

PORT = int(os.environ["BENCH_SMTP_PORT"])
KEPT = os.environ.get("BENCH_SMTP_KEPT") == "1"

app = Celery("bench", broker=os.environ["BENCH_AMQP_URL"])
app.conf.update(
    task_acks_late=True,  # as durable as Bellhop: a task is gone when it is done
    task_ignore_result=True,
    task_default_queue="celery-mail",
    worker_prefetch_multiplier=20,
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)
kept: smtplib.SMTP | None = None


@app.task(name="send")
def send(to: str, subject: str, text: str) -> None:
    """Send one mail: over a connection of its own, or over one that the process keeps."""
    global kept
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "hello@bellhop.example", to, subject
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="bellhop.example")
    message.set_content(text)
    if not KEPT:
        with smtplib.SMTP("127.0.0.1", PORT) as smtp:
            smtp.send_message(message)
        return
    if kept is None:
        kept = smtplib.SMTP("127.0.0.1", PORT)
    kept.send_message(message)


if __name__ == "__main__":
    with app.producer_pool.acquire(block=True) as producer:
        for _ in range(int(sys.argv[2])):
            send.apply_async(("ada@example.com", "Your order", os.environ["BENCH_TEXT"]), producer=producer)
