"""A job and its events as clients see them: ISO times, parsed JSON, no column that is nobody's business."""

import json
from typing import Any

from broker.clock import iso
from broker.jobs.model import Event, Job
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
    """Shows a job, with URLs as a broker below `root_path` has them."""
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
        runpod_job_id=job.provider_job_id,
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
    """Shows an event; unset fields are those that did not change."""
    data = json.loads(event.data)
    changes = {name: value for name, value in data.items() if name in _CHANGED} | _converted(data)
    if "provider_job_id" in data:  # in events of older brokers under the API's name already
        changes["runpod_job_id"] = data["provider_job_id"]
    if "stalled_since" in data:
        changes["stalled"] = data["stalled_since"] is not None
    if "error_code" in data:
        changes["retryable"] = (
            data["error_code"] is not None and ErrorCode(data["error_code"]).retryable
        )
    return EventView(
        seq=event.seq, at=iso(event.at), kind=event.kind, changes=JobChanges.model_validate(changes)
    )


def ends(event: Event) -> bool:
    """Whether nothing can come after an event."""
    status = json.loads(event.data).get("status")
    return status is not None and JobStatus(status).is_terminal


def _converted(columns: dict[str, Any]) -> dict[str, Any]:
    """Returns those of the columns that are stored otherwise than they are shown."""
    shown: dict[str, Any] = {
        name: iso(columns[name]) if columns[name] else None for name in _MOMENTS if name in columns
    }
    if "result" in columns:
        shown["result"] = (
            OutputFacts.model_validate_json(columns["result"]) if columns["result"] else None
        )
    return shown
