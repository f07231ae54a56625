"""What Prometheus reads: real numbers after real moves, from whoever may ask, and never an id in
them.
"""

import asyncio
import json
import math
import platform
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
import websockets
import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.exc import OperationalError

from broker.bucket import open_bucket
from broker.ops.metrics import Metrics
from broker.ops.overview import Overview
from schemas.keys import object_key
from tests.broker.api.calls import JOB, on_one_database, until
from tests.broker.provider import Worker, refuse

SCRAPER = "scraper-key-0123456789"
PROMTOOL = shutil.which("promtool") or shutil.which(
    "promtool", path=str(Path(sys.executable).parent)
)
GUIDE = Path(__file__).parents[3] / "docs" / "observability"


def parsed(text):
    """Returns the value of each series by its name, or by (name, label, …) where it has labels, in
    the order of their names.
    """
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removeprefix("reelbroker_")
            found[(name, *sample.labels.values()) if sample.labels else name] = sample.value
    return found


async def scrape(client):
    reply = await client.get("/metrics")
    assert (reply.status_code, reply.headers["content-type"]) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
    )
    return parsed(reply.text)


async def seen(client, done, seconds=20):
    """Scrapes until something is so."""
    async with asyncio.timeout(seconds):
        while not done(told := await scrape(client)):
            await asyncio.sleep(0.1)
    return told


@pytest.fixture
def settings(settings):
    """With prices, and a key for the scraper."""
    more = {"REELBROKER_GPU_PRICES": {"*": 0.5}, "REELBROKER_METRICS_KEY": SCRAPER}
    return lambda **overrides: settings(**more, **overrides)


async def test_a_job_from_submit_to_end_in_numbers(client, provider, bucket):
    """On either database: open while it is, then one that ended, with its times, GPU seconds and
    cost; and no series that is new.
    """
    before = await scrape(client)
    assert before["build_info", platform.python_version(), version("reelbroker")] == 1
    url = (await client.post("/api/jobs", json=JOB)).headers["location"]
    open_now = await seen(client, lambda told: told["open_jobs", "queued"])
    assert (
        open_now["open_jobs", "accepted"],
        open_now["jobs_ended_total", "", "complete", "framing"],
    ) == (
        0,
        0,
    )
    assert 0 <= open_now["oldest_wait_seconds"] < 30
    Worker(bucket, provider.only()["sent"]).finish()
    await until(client, url, lambda job: job["status"] == "complete")
    after = await scrape(client)
    assert after["jobs_ended_total", "", "complete", "framing"] == 1
    assert after["gpu_seconds_total", "framing"] == 3.5
    assert after["cost_usd_total", "framing"] == 1.75
    for name in ("queue", "run", "total"):
        assert after[f"job_{name}_seconds_count", "framing"] == 1
    assert after["job_run_seconds_sum", "framing"] == 3.5
    assert 0 < after["job_total_seconds_sum", "framing"] < 30
    assert after["provider_calls_total", "submit", "ok", "runpod"] == 1
    assert after["provider_calls_total", "status", "ok", "runpod"] >= 1
    assert after["provider_call_seconds_count", "submit", "runpod"] == 1
    assert after["look_late_seconds_count"] >= 2
    assert (
        after["open_jobs", "queued"],
        after["oldest_wait_seconds"],
        after["reconcile_lag_seconds"],
    ) == (
        0,
        0,
        0,
    )
    assert (after["provider_up"], after["provider_workers", "idle"], after["database_up"]) == (
        1,
        1,
        1,
    )
    assert after["http_responses_total", "2xx"] > before["http_responses_total", "2xx"]
    assert sum(value for name, value in after.items() if name[0] == "storage_errors_total") == 0
    assert set(after) == set(before)


@on_one_database
async def test_nobodys_ids_are_in_it(client, provider, settings):
    """No job, user, key or endpoint, whatever happened to them; hundreds of series and no more."""
    job = (
        await client.post("/api/jobs", json=JOB | {"metadata": {"name": "secret-project"}})
    ).json()
    await seen(client, lambda told: told["open_jobs", "queued"])
    await client.get("/api/jobs/no-such-job")
    text = (await client.get("/metrics")).text
    for never in (
        job["job_id"],
        settings().user_id,
        JOB["input_key"],
        "no-such-job",
        "rp-1",
        "embedded",
        "project",
    ):
        assert never not in text
    assert len(parsed(text)) < 700


@on_one_database
async def test_a_job_that_fails_is_counted_by_its_code(client, provider):
    """Refused by the provider."""
    provider.fault = lambda request: (
        httpx.Response(422, text="no") if request.url.path.endswith("/run") else None
    )
    url = (await client.post("/api/jobs", json=JOB)).headers["location"]
    await until(client, url, lambda job: job["status"] == "error")
    told = await scrape(client)
    assert told["jobs_ended_total", "provider_refused", "error", "framing"] == 1
    assert told["provider_calls_total", "submit", "refused", "runpod"] == 1
    # How long good ones take.
    assert told["job_total_seconds_count", "framing"] == 0


@on_one_database
async def test_a_provider_that_is_down(client, provider):
    """Its calls fail, then the breaker is open and most are not even sent; the job waits."""
    provider.fault = refuse
    for _ in range(8):
        await client.post("/api/jobs", json=JOB)

    def is_known(told):
        held = (
            told["provider_breaker_open"]
            and told["provider_calls_total", "submit", "held", "runpod"]
        )
        return held and told["open_jobs", "submitting"] == 8

    told = await seen(client, is_known)
    assert told["provider_calls_total", "submit", "unreachable", "runpod"] >= 1
    assert told["provider_up"] == 0
    assert math.isnan(told["provider_workers", "idle"])
    answered = sum(
        told["provider_calls_total", "submit", outcome, "runpod"]
        for outcome in ("ok", "unreachable", "uncertain")
    )
    assert told["provider_call_seconds_count", "submit", "runpod"] == answered


@on_one_database
async def test_what_cannot_be_seen_is_not_a_number(client, monkeypatch):
    """And not what it was before; the rest is told all the same."""

    def away(_):
        raise OperationalError("SELECT", {}, Exception("away"))

    await scrape(client)
    monkeypatch.setattr(Overview, "backlog", away)
    told = await scrape(client)
    assert told["database_up"] == 0
    for name in (("open_jobs", "queued"), "oldest_wait_seconds", "reconcile_lag_seconds"):
        assert math.isnan(told[name])
    assert told["http_responses_total", "2xx"] >= 1


@on_one_database
async def test_a_bucket_that_is_away(settings, running, provider):
    """Each call that failed is counted, and so is the look that came to nothing."""
    async with running(settings(R2_ENDPOINT="http://127.0.0.1:9"), provider) as client:
        await client.post("/api/jobs", json=JOB)
        told = await seen(client, lambda told: told["looks_failed_total", "unreachable"], 30)
        assert told["storage_errors_total", "HEAD"] >= 1
        assert told["looks_failed_total", "crashed"] == 0


@on_one_database
async def test_who_watches_is_counted_for_as_long(served):
    """Server-sent events and WebSockets."""
    async with served.async_client() as client:
        job = (await client.post("/api/jobs", json=JOB)).json()
        async with client.stream("GET", job["urls"]["events"]) as stream:
            lines = stream.aiter_lines()
            while not (await anext(lines)).startswith("data"):
                pass
            address = served.ws + job["urls"]["ws"]
            async with websockets.connect(address, additional_headers=served.headers) as socket:
                await socket.recv()
                told = await scrape(client)
                assert (told["streams_open", "sse"], told["streams_open", "websocket"]) == (1, 1)
        await seen(
            client,
            lambda told: told["streams_open", "sse"] == told["streams_open", "websocket"] == 0,
            5,
        )


@on_one_database
async def test_the_scrapers_key_opens_the_metrics_and_nothing_else(client, settings, running):
    """An admin's opens them too, a user's does not; without the setting no such key exists."""
    scraper = {"Authorization": f"Bearer {SCRAPER}"}
    assert (await client.get("/metrics", headers=scraper)).status_code == 200
    for path in ("/api/jobs", "/api/me", "/api/operations", "/api/keys"):
        assert (await client.get(path, headers=scraper)).status_code == 401
    bob = (await client.post("/api/keys", json={"user_id": "bob"})).json()["key"]
    for key, status in ((bob, 403), ("wrong", 401), ("", 401)):
        assert (
            await client.get("/metrics", headers={"Authorization": f"Bearer {key}"})
        ).status_code == status


def test_two_apps_in_a_process_count_each_for_itself():
    """A registry for each."""
    one, other = Metrics(["a"]), Metrics(["a"])
    one.storage_failed("GET")
    values = [parsed(each.exposition(False, None, []).decode()) for each in (one, other)]
    assert [told["storage_errors_total", "GET"] for told in values] == [1, 0]


def series():
    """All names that are exposed."""
    text = Metrics(["runpod"]).exposition(False, None, []).decode()
    return {
        sample.name for family in text_string_to_metric_families(text) for sample in family.samples
    }


def expressions():
    """(where, PromQL) of every panel and rule."""
    for panel in json.loads((GUIDE / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]
    for group in yaml.safe_load((GUIDE / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def test_dashboard_and_alerts_ask_for_what_is_there():
    """Each metric that they name is exposed, each word of a label is one that it has, and each
    alert is explained.
    """
    known, text = series(), Metrics(["runpod"]).exposition(False, None, []).decode()
    asked = set()
    for where, expression in expressions():
        names = re.findall(r"\b(?:(?:reelbroker|process)_\w+|up\b)", expression)
        assert names, where
        # Prometheus says that one itself.
        assert set(names) <= known | {"up"}, where
        asked |= set(names)
        for label, wanted in re.findall(r'(\w+)=~?"([^"$]*)"', expression):
            for word in wanted.split("|"):
                if label != "job":
                    assert f'{label}="{word}"' in text, (where, label, word)
    # Whatever is counted is shown somewhere, or it need not be counted.
    bases = {re.sub("_(bucket|sum|count)$", "", name) for name in asked}
    assert {
        re.sub("_(bucket|sum|count)$", "", name) for name in known if name.startswith("reelbroker_")
    } == {base for base in bases if base.startswith("reelbroker_")}
    guide = (GUIDE / "README.md").read_text()
    alerts = [
        rule["alert"]
        for group in yaml.safe_load((GUIDE / "alerts.yml").read_text())["groups"]
        for rule in group["rules"]
    ]
    assert re.findall(r"^### (\w+)", guide, flags=re.MULTILINE) == alerts


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not here; scripts/test brings it")
def test_prometheus_takes_the_alerts_and_they_come_when_they_should():
    """What Prometheus itself says of the rules, of what we tell, and of days that went wrong
    (tests/broker/alerts.yml).
    """
    told = Metrics(["runpod"]).exposition(False, None, [])
    days = Path(__file__).parents[1] / "alerts.yml"
    for words, given in (
        (["check", "rules", GUIDE / "alerts.yml"], None),
        (["test", "rules", days], None),
        (["check", "metrics"], told),
    ):
        run = subprocess.run(
            [PROMTOOL, *words], input=given, capture_output=True, timeout=60, check=False
        )
        assert run.returncode == 0, (run.stdout + run.stderr).decode()


@on_one_database
def test_the_buckets_presigned_urls_are_no_calls(settings):
    """Minting one counts nothing, and a missing object is no error."""
    told = []
    bucket = open_bucket(settings(), told.append)
    assert bucket.size(object_key("u", "none.mp4")) is None
    bucket.presigned_get("u/none.mp4", "a.mp4", 60)
    assert told == []
