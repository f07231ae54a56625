"""What an operator sees: counts of all users' jobs on both databases, the provider's word, and what
needs a look.
"""

import asyncio

import httpx
import pytest

from broker.clock import DAY_MS, HOUR_MS
from broker.jobs.model import Attempt, AttemptState
from broker.ops.overview import HEALTH_SECONDS, Overview
from broker.providers.registry import make_providers
from broker.providers.runpod import RunPod
from broker.store.engine import open_engine
from broker.store.jobs import JobStore
from broker.store.reports import Backlog, Reports
from tests.broker.provider import Provider

#: 30 minutes into the third hour of a day.
NOW = 20_000 * DAY_MS + 2 * HOUR_MS + HOUR_MS // 2


class Board:
    """The service, with a clock of the test's."""

    def __init__(self, settings, make_job):
        self.settings, self.make_job, self.now = settings, make_job, NOW
        self.engine, self.provider = open_engine(settings.database_url), Provider()
        self.store = JobStore(self.engine)
        self.http = httpx.AsyncClient(transport=self.provider)
        providers = make_providers(settings, self.http)
        self.service = Overview(
            settings, Reports(self.engine), self.store, providers, lambda: self.now
        )

    def ended(self, hours_ago, **fields):
        """A job that ended so long ago."""
        at = NOW - int(hours_ago * HOUR_MS)
        given = {"status": "complete", "output_key": "x", "completed_at": at} | fields
        return self.store.add(self.make_job(user_id=f"u{hours_ago}", **given))

    async def look(self):
        return await self.service.fleet(draining=False)


@pytest.fixture
async def board(settings, make_job):
    board = Board(settings(REELBROKER_GPU_PRICES={"*": 0.5}), make_job)
    yield board
    await board.http.aclose()
    board.store.close()


async def test_what_ended_is_counted_by_the_hour(board):
    """24 clock hours, the last one not over; today is since midnight UTC; what nobody has priced
    costs nothing known.
    """
    board.ended(0.1, gpu_seconds=3.5, cost_usd=0.25)
    board.ended(0.2, gpu_seconds=1.5, cost_usd=0.5)
    board.ended(0.2, status="error", output_key=None, error_code="invalid_media")
    board.ended(1.2, status="cancelled", output_key=None, gpu_seconds=2.0)
    board.ended(5, status="error", output_key=None, error_code="invalid_media", gpu_seconds=1.0)
    board.ended(5, status="error", output_key=None, error_code="worker_lost")
    board.ended(25, gpu_seconds=100.0)
    fleet = await board.look()
    assert (len(fleet.hours), fleet.hours[-1].at) == (24, "2024-10-04T02:00:00.000+00:00")
    last, before = fleet.hours[-1], fleet.hours[-2]
    assert (last.complete, last.error, last.cancelled, last.gpu_seconds, last.cost_usd) == (
        2,
        1,
        0,
        5.0,
        0.75,
    )
    assert (before.cancelled, before.gpu_seconds, before.cost_usd) == (1, 2.0, None)
    assert sum(hour.error for hour in fleet.hours) == 3
    assert (
        fleet.today.complete,
        fleet.today.error,
        fleet.today.cancelled,
        fleet.today.gpu_seconds,
    ) == (
        2,
        1,
        1,
        7.0,
    )
    assert fleet.error_codes == {"invalid_media": 2, "worker_lost": 1}


async def test_what_ended_today_is_counted_by_provider(board):
    """By the provider of each job's newest attempt; a job that was never sent counts for none."""
    board.ended(0.1, provider="runpod", gpu_seconds=3.5, cost_usd=0.25)
    board.ended(0.2, provider="modal", gpu_seconds=1.5, cost_usd=0.5)
    board.ended(0.3, provider="modal", status="error", output_key=None, error_code="internal")
    board.ended(0.4, status="cancelled", output_key=None)
    fleet = await board.look()
    told = {
        name: (tally.complete, tally.error, tally.gpu_seconds, tally.cost_usd)
        for name, tally in fleet.today_by_provider.items()
    }
    assert told == {"modal": (1, 1, 1.5, 0.5), "runpod": (1, 0, 3.5, 0.25)}


async def test_open_jobs_by_phase_and_who_waits_longest(board):
    """Of all users together."""
    board.store.add(board.make_job(created_at=NOW - 90_000))
    board.store.add(
        board.make_job(user_id="u2", created_at=NOW - 30_000, phase="queued", status="processing")
    )
    board.store.add(
        board.make_job(created_at=NOW - 900_000, phase="processing", status="processing")
    )
    fleet = await board.look()
    assert fleet.open_jobs == {"accepted": 1, "queued": 1, "processing": 1}
    assert fleet.oldest_wait_seconds == pytest.approx(90)


async def test_what_needs_a_look(board):
    """Jobs that are stuck, and runs that nobody wants any more with what they cost at most."""
    stuck = board.store.add(
        board.make_job(
            stalled_since=NOW - 60_000, progress=40, phase="processing", status="processing"
        )
    )
    attempt = Attempt(
        token="1" * 32,
        job_id=stuck.id,
        number=1,
        state=AttemptState.SUPERSEDED,
        provider="runpod",
        target="",
        provider_job_id="rp-1",
        created_at=NOW,
        submitted_at=NOW - 20_000,
        error_code="worker_lost",
        orphan_due_at=1,
    )
    board.store.note(attempt)
    fleet = await board.look()
    assert [(job.job_id, job.user_id, job.progress) for job in fleet.stalled] == [
        (stuck.id, "u1", 40)
    ]
    (orphan,) = fleet.orphans
    assert (orphan.runpod_job_id, orphan.why, orphan.seconds_at_most, orphan.usd_at_most) == (
        "rp-1",
        "worker_lost",
        20,
        10.0,
    )


async def test_the_provider_is_asked_once_for_many_who_look(board):
    """And again when its word is old; where it does not answer, the rest is there all the same."""
    board.provider.workers = {
        "idle": 2,
        "ready": 2,
        "running": 1,
        "initializing": 3,
        "throttled": 4,
        "unhealthy": 5,
    }
    seen = await asyncio.gather(*(board.look() for _ in range(20)))
    assert len(board.provider.calls) == 1
    workers = seen[0].places[0].workers
    assert (
        workers.idle,
        workers.running,
        workers.starting,
        workers.throttled,
        workers.unhealthy,
    ) == (
        2,
        1,
        3,
        4,
        5,
    )
    board.provider.fault = lambda request: httpx.Response(500)
    board.now += int(HEALTH_SECONDS * 1000)
    fleet = await board.look()
    assert fleet.places[0].workers is None
    assert "500" in fleet.places[0].error


async def test_a_provider_that_hangs_holds_up_nobody(board, monkeypatch):
    """For so long as one may wait for it."""
    monkeypatch.setattr("broker.ops.overview.HEALTH_SECONDS", 0.05)

    async def hang(*_):
        await asyncio.sleep(60)

    monkeypatch.setattr(RunPod, "health", hang)
    fleet = await asyncio.wait_for(board.look(), 10)
    assert "did not answer" in fleet.places[0].error


async def test_the_backlog_is_what_is_under_way(board):
    """The same counts, without a day of jobs: for whoever asks every few seconds, and how late the
    looks are.
    """
    assert board.service.backlog() == Backlog({}, None, 0.0, 0, 0)
    board.store.add(board.make_job(created_at=NOW - 90_000, due_at=NOW - 4_000))
    working = {"phase": "processing", "status": "processing"}
    board.store.add(board.make_job(stalled_since=NOW - 60_000, due_at=NOW + 9_000, **working))
    lost = board.ended(0.1, status="error", output_key=None, error_code="worker_lost", due_at=0)
    board.store.note(
        Attempt(
            token="2" * 32,
            job_id=lost.id,
            number=1,
            provider="p",
            target="",
            created_at=NOW,
            orphan_due_at=1,
        )
    )
    assert board.service.backlog() == Backlog({"accepted": 1, "processing": 1}, 90.0, 4.0, 1, 1)
