"""A cancel says only what is so, also while nobody knows whether the broker has the message."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.driver import Driver
from tests.faults.proxy import proxy_to
from tests.faults.sinks import Sinks, looking_into
from tests.faults.system import Rig, system
from tests.support import wait_until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(200)]


async def _cancel_while_no_confirm_comes(rig: Rig, folder: Path, *mutants: str) -> tuple[int, str, int]:
    """Keep the broker's answers from the gateway, cancel a mail meanwhile; return status, final state and mails."""
    # Not in a hurry: a lease that ran out would leave its own mark.
    options: dict[str, Any] = {"services": ("gateway", "mailer"), "changes": mutants}
    async with (
        proxy_to(rig.node.ports.amqp) as proxy,
        system(rig, folder, amqp_port=proxy.port, start=False, **options) as whole,
    ):
        settings = whole["mailer"].settings  # only the gateway is cut off
        settings["amqp_url"] = settings["amqp_url"].replace(f":{proxy.port}/", f":{rig.node.ports.amqp}/")
        driver, sinks, gateway = Driver(whole), Sinks(whole), whole["gateway"]
        gateway.start()
        await gateway.ready()
        proxy.answering.clear()
        assert await driver.mail("normal")
        (task_id,) = next(iter(driver.ids.values()))

        async def arrived() -> bool:
            return await whole.vhost.depth("mail.normal") > 0

        await wait_until(arrived, 15, "the broker has the message")

        def released() -> bool:
            with looking_into(whole.database("gateway")) as database:
                query = "SELECT count(*) FROM outbox WHERE claimed_until = 0"
                return bool(database.execute(query).fetchone()[0])

        await wait_until(released, 30, "no confirm came in time")
        answer = await driver.post(f"/v1/tasks/{task_id}/cancel", None)
        assert answer is not None
        proxy.answering.set()
        whole["mailer"].start()

        def final() -> str | None:
            (state, _), *_ = sinks.tasks().values()
            return state if state in ("sent", "cancelled") and not sinks.outbox() else None

        state = await wait_until(final, 60, "the task has ended and nothing is in the outbox")

        async def empty() -> bool:
            return not await whole.vhost.depth("mail.normal") and not await sinks.waiting()

        await wait_until(empty, 40, "the mailer has done with the message", interval=0.5)
        return answer.status_code, state, sum(sinks.mails().values())


async def test_a_cancel_without_a_confirm_asks_the_mailer(rig: Rig, tmp_path: Path) -> None:
    """202, and the state is what happened."""
    status, state, mails = await _cancel_while_no_confirm_comes(rig, tmp_path)
    assert status == 202
    assert (state, mails) in (("cancelled", 0), ("sent", 1))


async def test_a_gateway_that_forgets_what_may_be_out_is_caught(rig: Rig, tmp_path: Path) -> None:
    """It says 200, which means certainly cancelled, and the mail goes out."""
    status, _, mails = await _cancel_while_no_confirm_comes(rig, tmp_path, "forgetful_release")
    assert (status, mails) == (200, 1)
