"""The peer of bench/accept.py: Flask and Celery, as most Python applications get mail off the request path.

    gunicorn --worker-class gthread --workers 1 --threads 16 flask_celery:app

As durable as RabbitMQ makes it: the message is persistent, and the answer follows the broker's confirm, which Celery
does not wait for unless it is told to. No row is written: nobody can ask what became of the mail.
"""

import os

from celery import Celery
from flask import Flask, request

celery = Celery("bench", broker=os.environ["BENCH_AMQP_URL"])
celery.conf.update(
    broker_transport_options={"confirm_publish": True},
    broker_pool_limit=16,  # a connection for each thread
    task_ignore_result=True,
    task_default_queue="celery-accept",
)
app = Flask("bench")


@celery.task(name="send")
def send(to: str, subject: str, text: str) -> None:
    """Would send one mail; here only the way into the queue is measured."""


@app.get("/readyz")
def ready() -> dict[str, str]:
    """Say that this process answers."""
    return {}


@app.post("/v1/mail")
def accept() -> tuple[dict[str, str], int]:
    """Queue one mail."""
    wish = request.get_json()
    return {"id": send.delay(wish["to"], wish["subject"], wish["text"]).id}, 202
