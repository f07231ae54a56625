"""The scheduler goes on, whatever fails: the store, a provider, or its own code."""

import asyncio
import itertools
from types import SimpleNamespace

import pytest

from broker.engine import scheduler
from broker.engine.scheduler import Scheduler
from broker.errors import BrokerError


class Store:
    """One job, always due."""

    def __init__(self):
        self.failures = 0

    def count_open(self):
        if self.failures:
            self.failures -= 1
            raise OSError("the disk is full")
        return 1

    def due(self, now, most, but):
        return [(SimpleNamespace(id="job"), [])]

    def orphans(self, now, most):
        return []


def core(advance, postpone):
    async def nothing():
        pass

    return SimpleNamespace(
        reconciler=SimpleNamespace(
            advance=advance, postpone=postpone, set_open_jobs=lambda count: None
        ),
        drain=SimpleNamespace(read=nothing),
        listings=SimpleNamespace(refresh=nothing),
    )


async def postponed(monkeypatch, store, advance, failures, postpone=None):
    """Runs a scheduler until the job has been postponed twice."""
    monkeypatch.setattr(scheduler, "IDLE_SECONDS", 0.01)
    names = []

    async def count(name):
        names.append(name)
        if len(names) == 2:
            loop.close()
        if postpone:
            postpone()

    # Each look counts the open jobs anew.
    clock = itertools.count(10_000, 10_000).__next__
    loop = Scheduler(store, core(advance, count), clock, failures.append)
    await asyncio.wait_for(loop.run(), 10)
    return names


@pytest.mark.parametrize(
    ("error", "why"), [(BrokerError("no answer"), "unreachable"), (KeyError("x"), "crashed")]
)
async def test_a_job_that_fails_is_postponed_and_tried_again(monkeypatch, error, why):
    """Its failure is counted by its kind, each time."""

    async def advance(job, attempts):
        raise error

    failures = []
    assert set(await postponed(monkeypatch, Store(), advance, failures)) == {"job"}
    assert set(failures) == {why}


async def test_a_store_that_fails_is_asked_again(monkeypatch):
    """Neither a count nor a postponement that fails ends the loop."""

    async def advance(job, attempts):
        raise BrokerError("no answer")

    def full():
        raise OSError("the disk is full")

    store = Store()
    store.failures = 2
    assert len(await postponed(monkeypatch, store, advance, [], full)) >= 2
    assert store.failures == 0
