"""Read the body of a delivery by its contract."""

from typing import TypeVar

from pydantic import ValidationError

from bellhop.amqp.errors import Reject
from bellhop.amqp.message import Delivery
from bellhop.contracts.base import Contract

C = TypeVar("C", bound=Contract)


def decode(contract: type[C], delivery: Delivery) -> C:
    """Return the body as `contract`.

    Raises:
        Reject: the body breaks the contract; the text says where.
    """
    try:
        return contract.read(delivery.body)
    except ValidationError as error:
        raise Reject(f"not a {contract.__name__}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """Return the first error, with its place."""
    problem = error.errors(include_input=False, include_url=False, include_context=False)[0]
    where = ".".join(map(str, problem["loc"]))
    return f"{where}: {problem['msg']}" if where else problem["msg"]
