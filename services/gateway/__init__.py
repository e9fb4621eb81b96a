"""HTTP in, AMQP out."""
