"""Whose request a job comes from: taken from the header or drawn, kept with the job, told to the
worker, and in every line about it.
"""

import asyncio
import re
import shlex

import httpx
import pytest
import structlog

from broker.bucket import open_bucket
from broker.cli.main import log_to_stderr
from broker.trace import received, trace_id
from schemas.keys import object_key
from tests.broker.api.calls import JOB, on_one_database, until
from tests.broker.provider import Provider, Worker

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADER = f"00-{TRACE}-{SPAN}-01"
DRAWN = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-00")


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    yield
    structlog.reset_defaults()


@pytest.fixture
def provider():
    """A provider that takes jobs and runs none."""
    return Provider()


@pytest.mark.parametrize(
    "header", [HEADER, f"01-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-what-comes-later"]
)
def test_a_valid_one_is_taken(header):
    """Of a later version, what version 00 knows of it."""
    assert received([header]) == HEADER
    assert trace_id(received([header])) == TRACE


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="none"),
        pytest.param([HEADER, HEADER], id="two"),
        pytest.param([f"ff-{TRACE}-{SPAN}-01"], id="version-ff"),
        pytest.param([f"00-{TRACE}-{SPAN}-01-more"], id="version-00-with-more"),
        pytest.param([f"00-{'0' * 32}-{SPAN}-01"], id="no-trace"),
        pytest.param([f"00-{TRACE}-{'0' * 16}-01"], id="no-span"),
        pytest.param([HEADER.upper()], id="capitals"),
        pytest.param([f"{HEADER}\n"], id="a-line-more"),
        pytest.param([f"00-{TRACE}-{SPAN}"], id="cut-off"),
        pytest.param(["x" * 10_000], id="long"),
    ],
)
def test_otherwise_one_is_drawn(headers):
    """Anew each time, and not sampled."""
    first, second = received(headers), received(headers)
    assert DRAWN.fullmatch(first)
    assert first != second


def test_a_job_of_before_has_none():
    """A row that a broker without traces wrote."""
    assert trace_id(None) is None


def lines(text):
    """The log as dicts, one a line."""
    return [
        dict(word.partition("=")[::2] for word in shlex.split(line))
        for line in text.splitlines()
        if line.startswith("timestamp=")
    ]


async def test_a_trace_leads_from_the_request_to_the_worker(settings, running, provider, capsys):
    """On either database, from the caller's header to the worker's input; every line about the job
    has both ids.
    """
    made = settings()
    bucket = open_bucket(made)
    bucket.write(object_key(made.user_id, JOB["input_key"]), b"a video")
    log_to_stderr()
    async with running(made, provider) as client:
        for path, body in (
            ("/api/jobs", JOB),
            ("/api/export/framing/start", {"input_key": "a.mp4"}),
        ):
            reply = await client.post(path, json=body, headers={"traceparent": HEADER})
            assert reply.is_success
        plain = (await client.post("/api/jobs", json=JOB)).json()["job_id"]
        url = f"/api/jobs/{plain}"
        await until(client, url, lambda job: job["phase"] == "queued")
        for path in [
            f"/api/jobs/{job['job_id']}" for job in (await client.get("/api/jobs")).json()["jobs"]
        ]:
            await until(client, path, lambda job: job["phase"] == "queued")
        sent = [job["sent"]["input"] for job in provider.jobs.values()]
        by_id = {told["job_id"]: told["traceparent"] for told in sent}
        drawn = by_id.pop(plain)
        assert set(by_id.values()) == {HEADER}
        assert DRAWN.fullmatch(drawn)
        mine = next(
            told["sent"]
            for told in provider.jobs.values()
            if told["sent"]["input"]["job_id"] == plain
        )
        Worker(bucket, mine).finish()
        await until(client, url, lambda job: job["status"] == "complete")
        assert "trace" not in (await client.get(url)).text
    told = [line for line in lines(capsys.readouterr().err) if "job_id" in line]
    assert {"accepted", "submitted", "ended"} <= {line["action"] for line in told}
    for line in told:
        expected = trace_id(drawn) if line["job_id"] == plain else TRACE
        assert line["trace_id"] == expected
    assert all(len(line["request_id"]) == 32 for line in told if line["action"] == "accepted")


@on_one_database
async def test_trouble_with_a_job_is_told_with_its_ids(
    settings, running, provider, capsys, monkeypatch
):
    """A look that fails, and one that crashes."""
    monkeypatch.setattr("broker.engine.reconciler.POSTPONED_SECONDS", 0.2)
    made = settings()
    open_bucket(made).write(object_key(made.user_id, JOB["input_key"]), b"a video")
    log_to_stderr()

    def fault(request):
        return 1 / 0 if request.url.path.endswith("/run") else httpx.Response(500)

    provider.fault = fault
    async with running(made, provider) as client:
        await client.post("/api/jobs", json=JOB, headers={"traceparent": HEADER})
        told = []
        async with asyncio.timeout(25):
            while {line["action"] for line in told} != {"look_failed", "look_crashed"}:
                await asyncio.sleep(0.1)
                told += [
                    line
                    for line in lines(capsys.readouterr().err)
                    if line["action"].startswith("look_")
                ]
    assert {line["trace_id"] for line in told} == {TRACE}
    assert all("job_id" in line for line in told)
