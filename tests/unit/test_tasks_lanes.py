"""How the lanes share the connections to the relay."""

import asyncio
from contextlib import suppress

import pytest

from bellhop.contracts.tasks import Lane
from bellhop.tasks.lanes import Lanes


async def fill(lanes: Lanes, lane: Lane, count: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(lanes.enter(lane)) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


def inside(tasks: list[asyncio.Task[None]]) -> int:
    return sum(task.done() for task in tasks)


async def cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_some_connections_stay_free_for_the_more_urgent() -> None:
    """Bulk fills 60 %, normal and bulk 85 %, urgent everything."""
    lanes = Lanes(20)
    bulk = await fill(lanes, Lane.BULK, 30)
    normal = await fill(lanes, Lane.NORMAL, 30)
    urgent = await fill(lanes, Lane.URGENT, 30)
    assert (inside(bulk), inside(normal), inside(urgent)) == (12, 5, 3)
    await cancel([*bulk, *normal, *urgent])


async def test_a_freed_slot_goes_to_the_most_urgent() -> None:
    """Who waits longest does not matter between lanes."""
    lanes = Lanes(1)
    await lanes.enter(Lane.BULK)
    (bulk,) = await fill(lanes, Lane.BULK, 1)
    (urgent,) = await fill(lanes, Lane.URGENT, 1)
    lanes.leave(Lane.BULK)
    await urgent
    assert not bulk.done()
    lanes.leave(Lane.URGENT)
    await bulk


@pytest.mark.parametrize("woken", [False, True])
async def test_a_waiter_that_gives_up_leaves_no_hole(woken: bool) -> None:
    """Cancelled while it waits, or in the moment in which its turn has come."""
    lanes = Lanes(1)
    await lanes.enter(Lane.BULK)
    (waiter,) = await fill(lanes, Lane.BULK, 1)
    if woken:
        lanes.leave(Lane.BULK)
    await cancel([waiter])
    if not woken:
        lanes.leave(Lane.BULK)
    assert lanes.busy == 0
    await asyncio.wait_for(lanes.enter(Lane.URGENT), 1)
