"""A job and its events as clients see them: ISO times, parsed JSON, and no internal column."""

import json
from typing import Any

from broker.clock import iso
from broker.jobs.model import Event, Job, provider_ids
from schemas.jobs import (
    ErrorCode,
    EventView,
    Evidence,
    JobChanges,
    JobStatus,
    JobUrls,
    JobView,
    OutputFacts,
)

_MOMENTS = ("started_at", "completed_at", "cancel_requested_at")
_OTHERWISE = {"created_at", *_MOMENTS, "params", "result"}
_AS_THEY_ARE = set(JobView.model_fields) & set(Job.model_fields) - _OTHERWISE
_CHANGED = set(JobChanges.model_fields) - _OTHERWISE


def view(job: Job, root_path: str) -> JobView:
    """Returns the view of a job, with URLs of a broker that is served below `root_path`."""
    path = f"{root_path}/api/jobs/{job.id}"
    done = job.status is JobStatus.COMPLETE
    evidence = None
    if job.evidence_source is not None and job.evidence_at is not None:
        evidence = Evidence(source=job.evidence_source, at=iso(job.evidence_at))
    urls = JobUrls(
        self=path,
        events=f"{path}/events",
        ws=f"{path}/ws",
        cancel=f"{path}/cancel",
        retry=f"{path}/retry",
        output=f"{path}/output" if done else None,
    )
    return JobView(
        **job.model_dump(include=_AS_THEY_ARE),
        **_converted(job.model_dump(include={*_MOMENTS, "result"})),
        job_id=job.id,
        **provider_ids(job.provider, job.provider_job_id),
        retryable=job.error_code is not None and job.error_code.retryable,
        stalled=job.stalled_since is not None,
        metadata=json.loads(job.meta),
        params=json.loads(job.params),
        created_at=iso(job.created_at),
        last_evidence=evidence,
        urls=urls,
        websocket_url=urls.ws,
    )


def event_view(event: Event) -> EventView:
    """Returns the view of an event; fields that did not change are unset."""
    data = json.loads(event.data)
    changes = {name: value for name, value in data.items() if name in _CHANGED} | _converted(data)
    # Events of older brokers name no provider, and those before them have the API's name already.
    if "provider_job_id" in data:
        changes |= provider_ids(data.get("provider"), data["provider_job_id"])
    if "stalled_since" in data:
        changes["stalled"] = data["stalled_since"] is not None
    if "error_code" in data:
        code = data["error_code"]
        changes["retryable"] = code is not None and ErrorCode(code).retryable
    shown = JobChanges.model_validate(changes)
    return EventView(seq=event.seq, at=iso(event.at), kind=event.kind, changes=shown)


def ends(event: Event) -> bool:
    """Whether an event is the last one of its job."""
    status = json.loads(event.data).get("status")
    return status is not None and JobStatus(status).is_terminal


def _converted(columns: dict[str, Any]) -> dict[str, Any]:
    """Returns the columns that clients see in another form than the stored one."""
    shown: dict[str, Any] = {
        name: iso(columns[name]) if columns[name] else None for name in _MOMENTS if name in columns
    }
    if "result" in columns:
        text = columns["result"]
        shown["result"] = OutputFacts.model_validate_json(text) if text else None
    return shown
