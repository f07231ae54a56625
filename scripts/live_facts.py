"""The facts about R2, RunPod and Modal that the code assumes and that only an account can show.

Each fact has a probe that returns what it found. The probes use the broker's own clients, so what
they find is what the broker would see.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from starlette.concurrency import run_in_threadpool

from broker.bucket import Bucket
from broker.errors import ProviderError, ProviderNotReady
from broker.jobs.observation import RemoteJob, RemoteState, parsed
from broker.jobs.policy import Deadlines
from broker.providers.base import Provider
from broker.providers.runpod import RunPod
from schemas.jobs import JobType
from schemas.keys import object_key
from schemas.worker import Progress, Result, Started, WorkerInput, attempt_folder

RUN_SECONDS, CANCEL_SECONDS, POLL_SECONDS = 600.0, 60.0, 0.3
DEADLINES = Deadlines(600, 1200)
WEEK = 604_800
#: More than RunPod takes: 100 in 10 seconds for each endpoint.
MANY_CANCELS = 130
TEXT = {"Content-Type": "text/plain"}


@dataclass
class Lab:
    """What the probes use. They leave nothing behind outside the folder of `user`.

    Attributes:
        http: carries the requests to R2 and RunPod.
        providers: those to try, by name, each with its target.
        runpod_key: for requests that the broker's client does not make.
        clip: a short video.
    """

    http: httpx.AsyncClient
    bucket: Bucket
    providers: dict[str, tuple[Provider, str]]
    runpod_key: str
    clip: Path
    user: str = field(default_factory=lambda: f"try-live-{secrets.token_hex(4)}")
    runs: dict[str, "Ran"] = field(default_factory=dict)

    def key(self, name: str) -> str:
        """Returns the bucket's key for a name in the folder of this lab."""
        return object_key(self.user, name)


@dataclass(frozen=True)
class Ran:
    """A short job that a provider ran to its end."""

    provider_job_id: str
    remote: RemoteJob
    progress_seen: bool
    started: Started | None
    result: Result | None


@dataclass(frozen=True)
class Fact:
    """A fact; `assumed` is what the code in `depends` relies on.

    A probe may add details in brackets to what it found; they are not compared.
    """

    name: str
    what: str
    assumed: str
    depends: str
    probe: Callable[[Lab], Awaitable[str]]

    def is_as_assumed(self, found: str) -> bool:
        return found.partition(" (")[0] == self.assumed


# ── R2 ──────────────────────────────────────────────────────────────────────────────────────────


async def _put(
    lab: Lab, name: str, signed: dict[str, str], sent: dict[str, str], body: bytes
) -> int:
    url = lab.bucket.presigned_put(lab.key(name), 300, signed, len(body))
    return (await lab.http.put(url, content=body, headers=sent)).status_code


async def _second_put(lab: Lab) -> str:
    headers = TEXT | {"If-None-Match": "*"}
    first = await _put(lab, "once", headers, headers, b"first")
    second = await _put(lab, "once", headers, headers, b"other")
    return f"{first}, then {second}"


async def _other_length(lab: Lab) -> str:
    url = lab.bucket.presigned_put(lab.key("length"), 300, TEXT, 4)
    return _refused((await lab.http.put(url, content=b"longer", headers=TEXT)).status_code)


async def _other_type(lab: Lab) -> str:
    return _refused(await _put(lab, "type", TEXT, {"Content-Type": "text/html"}, b"body"))


async def _missing(lab: Lab) -> str:
    reply = await lab.http.get(lab.bucket.presigned_get(lab.key("nothing"), "x", 300))
    return f"{reply.status_code} {'NoSuchKey' if 'NoSuchKey' in reply.text else 'another code'}"


async def _unsigned(lab: Lab) -> str:
    await run_in_threadpool(lab.bucket.write, lab.key("private"), b"private")
    url = httpx.URL(lab.bucket.presigned_get(lab.key("private"), "x", 300))
    return _refused((await lab.http.get(url.copy_with(query=None))).status_code)


async def _range(lab: Lab) -> str:
    await run_in_threadpool(lab.bucket.write, lab.key("range"), b"0123456789")
    url = lab.bucket.presigned_get(lab.key("range"), "x", 300)
    reply = await lab.http.get(url, headers={"Range": "bytes=2-4"})
    return f"{reply.status_code} {reply.text}"


async def _week(lab: Lab) -> str:
    await run_in_threadpool(lab.bucket.write, lab.key("week"), b"week")
    reply = await lab.http.get(lab.bucket.presigned_get(lab.key("week"), "x", WEEK))
    return str(reply.status_code)


def _refused(status: int) -> str:
    return f"{'refused' if 400 <= status < 500 else 'accepted'} ({status})"


# ── RunPod ──────────────────────────────────────────────────────────────────────────────────────


async def _ask(lab: Lab, method: str, path: str, key: str | None = None, target: str = "") -> Any:
    target = target or lab.providers["runpod"][1]
    headers = {"Authorization": f"Bearer {key or lab.runpod_key}"}
    return await lab.http.request(method, target + path, headers=headers)


async def _wrong_key(lab: Lab) -> str:
    return str((await _ask(lab, "GET", "/health", key="rpa_wrong")).status_code)


async def _no_endpoint(lab: Lab) -> str:
    base = lab.providers["runpod"][1].rpartition("/")[0]
    return str((await _ask(lab, "GET", "/health", target=f"{base}/nosuchendpoint0")).status_code)


async def _unknown_status(lab: Lab) -> str:
    reply = await _ask(lab, "GET", "/status/00000000-0000-0000-0000-000000000000-u1")
    return f"{reply.status_code} ({reply.text[:60]})"


async def _unknown_cancel(lab: Lab) -> str:
    reply = await _ask(lab, "POST", "/cancel/00000000-0000-0000-0000-000000000000-u1")
    return f"{reply.status_code} ({reply.text[:60]})"


async def _week_long(lab: Lab) -> str:
    provider, target = lab.providers["runpod"]
    job_id = await provider.submit(target, _job(lab), Deadlines(WEEK, WEEK))
    await provider.cancel(target, job_id)
    return "accepted"


async def _too_many(lab: Lab) -> str:
    path = "/cancel/00000000-0000-0000-0000-000000000000-u1"
    replies = await asyncio.gather(*(_ask(lab, "POST", path) for _ in range(MANY_CANCELS)))
    waits = {reply.headers.get("retry-after") for reply in replies if reply.status_code == 429}
    refused = sum(reply.status_code == 429 for reply in replies)
    is_seconds = all(wait is None or wait.isdecimal() for wait in waits)
    words = "seconds, or none" if is_seconds else "something else"
    return f"{words} ({refused} of {MANY_CANCELS} refused, {waits or 'no header'})"


# ── both providers ──────────────────────────────────────────────────────────────────────────────


def _job(lab: Lab, **params: Any) -> WorkerInput:
    short = {"end_time": 2.0, "output_width": 270, "output_height": 480}
    return WorkerInput(
        job_id=f"try-live-{secrets.token_hex(4)}",
        user_id=lab.user,
        type=JobType.FRAMING,
        input_key="clip.mp4",
        params=short | params,
        attempt_token=secrets.token_hex(16),
        timeout_seconds=DEADLINES.execution,
    )


async def _until_over(
    provider: Provider, target: str, job_id: str, seconds: float
) -> tuple[RemoteJob, bool]:
    deadline, progress_seen = time.monotonic() + seconds, False
    while True:
        remote = await provider.status(target, job_id)
        is_running = remote.state is RemoteState.RUNNING
        progress_seen |= is_running and parsed(Progress, remote.output) is not None
        if remote.state.is_over or time.monotonic() > deadline:
            return remote, progress_seen
        await asyncio.sleep(POLL_SECONDS)


async def _ran(lab: Lab, name: str) -> Ran:
    """Runs a short job, once for all facts about one."""
    if name not in lab.runs:
        provider, target = lab.providers[name]
        job = _job(lab)
        job_id = await provider.submit(target, job, DEADLINES)
        remote, progress_seen = await _until_over(provider, target, job_id, RUN_SECONDS)
        folder = attempt_folder(job.job_id, job.attempt_token or "")

        async def document(model: Any, file_name: str) -> Any:
            body = await run_in_threadpool(lab.bucket.read, lab.key(f"{folder}/{file_name}"))
            return None if body is None else model.model_validate_json(body)

        started, result = (
            await document(Started, "started.json"),
            await document(Result, "result.json"),
        )
        lab.runs[name] = Ran(job_id, remote, progress_seen, started, result)
    return lab.runs[name]


def _run(name: str) -> Callable[[Lab], Awaitable[str]]:
    async def probe(lab: Lab) -> str:
        ran = await _ran(lab, name)
        committed = "result.json" if ran.result is not None else "no result.json"
        billed = "billed" if ran.remote.execution_seconds is not None else "not billed"
        return f"{ran.remote.state}, {committed}, {billed} ({ran.remote.error or 'no error'})"

    return probe


def _adoptable(name: str) -> Callable[[Lab], Awaitable[str]]:
    async def probe(lab: Lab) -> str:
        ran = await _ran(lab, name)
        if ran.started is None:
            return "no started.json"
        same = ran.started.provider_job_id == ran.provider_job_id
        return "the same id" if same else "another id"

    return probe


def _card(name: str) -> Callable[[Lab], Awaitable[str]]:
    async def probe(lab: Lab) -> str:
        result = (await _ran(lab, name)).result
        if result is None:
            return "no result"
        card = result.gpu or "no GPU"
        fallbacks = ", ".join(str(one) for one in result.fallbacks)
        return f"{'fallbacks' if fallbacks else 'no fallback'} ({card}; {fallbacks or 'none'})"

    return probe


def _again(name: str) -> Callable[[Lab], Awaitable[str]]:
    async def probe(lab: Lab) -> str:
        ran = await _ran(lab, name)
        provider, target = lab.providers[name]
        remote = await provider.status(target, ran.provider_job_id)
        return "the same" if remote.output == ran.remote.output else f"another ({remote.state})"

    return probe


async def _progress(lab: Lab) -> str:
    ran = await _ran(lab, "runpod")
    return "progress" if ran.progress_seen else "nothing"


def _cancelled(name: str) -> Callable[[Lab], Awaitable[str]]:
    async def probe(lab: Lab) -> str:
        provider, target = lab.providers[name]
        job_id = await provider.submit(target, _job(lab), DEADLINES)
        await provider.cancel(target, job_id)
        remote, _ = await _until_over(provider, target, job_id, CANCEL_SECONDS)
        return f"{remote.state} ({remote.error or 'no text'})"

    return probe


def _counted(name: str) -> Callable[[Lab], Awaitable[str]]:
    async def probe(lab: Lab) -> str:
        provider, target = lab.providers[name]
        job_id = await provider.submit(target, _job(lab), DEADLINES)
        health = await provider.health(target)
        await provider.cancel(target, job_id)
        count = health.jobs_queued + health.jobs_running
        return f"{'counted' if count else 'not counted'} ({health.workers_up} workers up)"

    return probe


# ── Modal ───────────────────────────────────────────────────────────────────────────────────────


async def _unknown_call(lab: Lab) -> str:
    provider, target = lab.providers["modal"]
    return str((await provider.status(target, "fc-01AAAAAAAAAAAAAAAAAAAAAAAA")).state)


async def _unknown_call_cancel(lab: Lab) -> str:
    provider, target = lab.providers["modal"]
    try:
        await provider.cancel(target, "fc-01AAAAAAAAAAAAAAAAAAAAAAAA")
    except ProviderError as error:
        return f"an error ({error})"
    return "counts as stopped"


async def _no_function(lab: Lab) -> str:
    provider, target = lab.providers["modal"]
    try:
        await provider.health(f"{target}-nosuchfunction")
    except ProviderNotReady as error:
        return f"not ready ({error})"
    except ProviderError as error:
        return f"another error ({error})"
    return "found"


async def _large_input(lab: Lab) -> str:
    provider, target = lab.providers["modal"]
    keyframes = [
        {"time": round(n / 500, 3), "x": 0.0, "y": 0.0, "width": 90.0, "height": 160.0}
        for n in range(1000)
    ]
    job_id = await provider.submit(target, _job(lab, crop_keyframes=keyframes), DEADLINES)
    await provider.cancel(target, job_id)
    return "accepted"


STORAGE = (
    Fact(
        "r2-once",
        "A presigned PUT with If-None-Match: * for an object that exists",
        "200, then 412",
        "gpu_worker/bucket.py: write_once; services/uploads.py",
        _second_put,
    ),
    Fact(
        "r2-length",
        "A presigned PUT with another Content-Length than the signed one",
        "refused",
        "services/uploads.py: the limit of an upload",
        _other_length,
    ),
    Fact(
        "r2-type",
        "A presigned PUT with another Content-Type than the signed one",
        "refused",
        "services/uploads.py",
        _other_type,
    ),
    Fact("r2-missing", "GET of a missing object", "404 NoSuchKey", "bucket.py: _MISSING", _missing),
    Fact("r2-unsigned", "GET without a signature", "refused", "the bucket is private", _unsigned),
    Fact("r2-range", "GET of bytes 2 to 4", "206 234", "gpu_worker/bucket.py: fetch", _range),
    Fact("r2-week", "A URL that is valid for 7 days", "200", "settings: url_lifetime", _week),
)
RUNPOD = (
    Fact("runpod-key", "A wrong key", "401", "providers/runpod.py: _NOT_READY", _wrong_key),
    Fact("runpod-endpoint", "No such endpoint", "404", "providers/runpod.py", _no_endpoint),
    Fact(
        "runpod-status",
        "Status of an unknown job",
        "404",
        "providers/runpod.py: ABSENT",
        _unknown_status,
    ),
    Fact(
        "runpod-unknown-cancel",
        "Cancel of an unknown job",
        "404",
        "providers/runpod.py: cancel",
        _unknown_cancel,
    ),
    Fact(
        "runpod-policy",
        "executionTimeout and ttl of 7 days",
        "accepted",
        "providers/runpod.py: submit",
        _week_long,
    ),
    Fact(
        "runpod-counted",
        "A job just submitted, in /health",
        "counted",
        "jobs/decide.py: _in_doubt",
        _counted("runpod"),
    ),
    Fact(
        "runpod-cancel",
        "State after a cancel",
        "cancelled",
        "engine/apply.py: _stop",
        _cancelled("runpod"),
    ),
    Fact(
        "runpod-429",
        "Retry-After of a 429",
        "seconds, or none",
        "providers/pacing.py: Pace",
        _too_many,
    ),
    Fact(
        "runpod-run",
        "A short job at its end",
        "finished, result.json, billed",
        "jobs/decide.py; engine/apply.py: _billed",
        _run("runpod"),
    ),
    Fact(
        "runpod-progress",
        "`output` while a job runs",
        "progress",
        "jobs/decide.py: _progress",
        _progress,
    ),
    Fact(
        "runpod-adopt",
        "The id in started.json",
        "the same id",
        "jobs/decide.py: adopt",
        _adoptable("runpod"),
    ),
    Fact(
        "runpod-card",
        "NVENC, NVDEC and the driver of the card",
        "no fallback",
        "gpu_worker/media/hardware.py",
        _card("runpod"),
    ),
)
MODAL = (
    Fact(
        "modal-function",
        "No such function",
        "not ready",
        "providers/modal.py: _not_ready",
        _no_function,
    ),
    Fact(
        "modal-unknown",
        "Status of an unknown call",
        "absent",
        "providers/modal.py: _outcome",
        _unknown_call,
    ),
    Fact(
        "modal-unknown-cancel",
        "Cancel of an unknown call",
        "counts as stopped",
        "providers/modal.py: cancel",
        _unknown_call_cancel,
    ),
    Fact(
        "modal-large",
        "An input above 8 KiB",
        "accepted",
        "providers/modal.py: submit",
        _large_input,
    ),
    Fact(
        "modal-counted",
        "A call just spawned, in the statistics",
        "counted",
        "jobs/decide.py: _in_doubt",
        _counted("modal"),
    ),
    Fact(
        "modal-cancel",
        "State after a cancel",
        "cancelled",
        "providers/modal.py: _is_cancelled",
        _cancelled("modal"),
    ),
    Fact(
        "modal-run",
        "A short job at its end",
        "finished, result.json, not billed",
        "gpu_worker/modal_app.py",
        _run("modal"),
    ),
    Fact(
        "modal-adopt",
        "The id in started.json",
        "the same id",
        "jobs/decide.py: adopt",
        _adoptable("modal"),
    ),
    Fact(
        "modal-again",
        "A result that is read again",
        "the same",
        "providers/modal.py: keeps_results_seconds",
        _again("modal"),
    ),
    Fact(
        "modal-card",
        "NVENC, NVDEC and the driver of the card",
        "no fallback",
        "gpu_worker/media/hardware.py",
        _card("modal"),
    ),
)
#: Only a worker could see these, at the moment in which its container ends.
NOT_TRIED = (
    "RunPod: how long a worker lives after SIGTERM (gpu_worker/runner.py: drain_seconds)",
    "RunPod: progress that arrives after the result (jobs/decide.py believes result.json)",
    "RunPod: a webhook after a cancel (the broker polls, so nothing depends on the call)",
    "Modal: which signal a preemption sends, and the time until SIGKILL (gpu_worker/modal_app.py)",
)


def facts(providers: tuple[str, ...]) -> list[Fact]:
    """Returns the facts about the bucket and these providers."""
    known = {RunPod.name: RUNPOD, "modal": MODAL}
    return [*STORAGE, *(fact for name in providers for fact in known[name])]


async def found(lab: Lab, fact: Fact) -> str:
    """Runs a probe; an error is what it found."""
    try:
        return await fact.probe(lab)
    except (ProviderError, httpx.HTTPError) as error:
        return f"an error ({type(error).__name__}: {error})"


async def prepare(lab: Lab) -> None:
    """Puts the clip into the bucket."""
    await run_in_threadpool(lab.bucket.write, lab.key("clip.mp4"), lab.clip.read_bytes())


async def clean(lab: Lab) -> int:
    """Removes all that the probes wrote; returns how many objects there were."""
    keys = [one.key for one in await run_in_threadpool(_listed, lab)]
    for key in keys:
        await run_in_threadpool(lab.bucket.delete, key)
    return len(keys)


def _listed(lab: Lab) -> list[Any]:
    return list(lab.bucket.listed(f"{lab.user}/"))
