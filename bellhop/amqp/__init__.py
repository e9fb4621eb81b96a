"""The path of a message: the only room that imports pika or aio_pika."""
