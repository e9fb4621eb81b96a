"""Messaging over RabbitMQ: the only package that imports pika or aio_pika."""
