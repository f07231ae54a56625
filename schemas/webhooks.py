"""Calls to the client's server when a job ends, signed by https://www.standardwebhooks.com."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field, StringConstraints

from schemas.jobs import ErrorCode, JobStatus, JobType, Wire


class HookKind(StrEnum):
    COMPLETE = "job.complete"
    ERROR = "job.error"
    CANCELLED = "job.cancelled"


class WebhookRequest(Wire):
    """The body of `POST /api/webhooks`."""

    url: Annotated[
        str, StringConstraints(max_length=2000, pattern=r"^https?://[^\s/@]+(/[^\s]*)?$")
    ]
    kinds: Annotated[frozenset[HookKind], Field(min_length=1, fail_fast=True)] = frozenset(HookKind)


class WebhookView(Wire):
    id: str
    url: str
    kinds: list[HookKind]
    created_at: str
    disabled_at: str | None  #: it answered 410, or was switched off


class WebhookSecret(WebhookView):
    """As it is shown once, with what its calls are signed with."""

    secret: str


class WebhookList(Wire):
    webhooks: list[WebhookView]


class HookJob(Wire):
    """Enough to know what to ask for; the job itself is a GET away."""

    job_id: str
    type: JobType
    status: JobStatus
    seq: int
    error_code: ErrorCode | None
    project_id: int | None
    game_id: int | None
    metadata: dict[str, str]


class HookPayload(Wire):
    """The body of a call."""

    type: HookKind
    timestamp: str
    data: HookJob


class HookTry(Wire):
    """One call of a delivery: `status` is null where nobody answered."""

    at: str
    status: int | None
    detail: str


class DeliveryView(Wire):
    """One message to one endpoint; its `id` is the `webhook-id` that the receiver sees, also when
    it is sent again.
    """

    id: str
    webhook_id: str
    job_id: str
    kind: HookKind
    created_at: str
    delivered_at: str | None
    next_try_at: str | None  #: null: delivered, or given up
    tries: list[HookTry]


class DeliveryList(Wire):
    deliveries: list[DeliveryView]
