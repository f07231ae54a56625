"""The table of all routes. The router, the OpenAPI document and the tests are made from it."""

from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.routing import BaseRoute, Mount, WebSocketRoute

from broker.api import (
    admin,
    docs as reference,
    health,
    jobs,
    keys as access,
    live,
    page,
    uploads,
    webhooks,
)
from broker.api.auth import Authentication, Limited, unauthenticated
from broker.api.compat import exports as aliases
from broker.api.route import Access, RouteSpec, resources
from broker.settings import Settings
from schemas.access import KeyList, KeyRequest, Me, NewKey, Ticket
from schemas.compat.aliases import (
    ExportCancelled,
    ExportJobList,
    ExportList,
    ExportStarted,
    ExportStatus,
    RemoteStatus,
    StartRequest,
    UpscaleAccepted,
    UpscaleFields,
)
from schemas.fleet import Fleet
from schemas.jobs import JobList, JobRequest, JobView, Quote, QuoteRequest
from schemas.uploads import DownloadQuery, DownloadUrl, Uploaded, UploadRequest, UploadTicket
from schemas.webhooks import DeliveryList, DeliveryView, WebhookList, WebhookRequest, WebhookSecret

_SUBMIT = (409, 429, 503)
JOB, LATER = "/api/jobs/{job_id}", ("Prefer",)
HOOK = "/api/webhooks/{webhook_id}"
UPLOAD = "/api/videos/uploads/{upload_id}"
EXPORT = "/api/exports/{job_id}"
METRICS = "/metrics"
SEEN = ("If-None-Match", "Prefer")

ROUTES = (
    RouteSpec("POST", "/api/jobs", jobs.submit, {202: JobView}, "jobs", body=JobRequest,
        problems=_SUBMIT, headers=("Idempotency-Key", "Prefer")),
    RouteSpec("GET", "/api/jobs", jobs.page, {200: JobList}, "jobs", query=jobs.ListQuery,
        problems=(422,)),
    RouteSpec("POST", "/api/jobs/quote", jobs.quote, {200: Quote}, "jobs", body=QuoteRequest,
        problems=(503,)),
    RouteSpec("PUT", JOB, jobs.submit, {202: JobView}, "jobs", body=JobRequest, problems=_SUBMIT,
        headers=LATER),
    RouteSpec("GET", JOB, jobs.get, {200: JobView, 304: None}, "jobs", problems=(404,),
        headers=SEEN),
    RouteSpec("POST", f"{JOB}/cancel", jobs.cancel, {200: JobView, 202: JobView}, "jobs",
        problems=(404, 409)),
    RouteSpec("POST", f"{JOB}/retry", jobs.retry, {202: JobView}, "jobs", problems=(404, *_SUBMIT),
        headers=LATER),
    RouteSpec("GET", f"{JOB}/output", jobs.output, {302: None}, "jobs", problems=(404,)),
    RouteSpec("GET", f"{JOB}/events", live.events, {200: "text/event-stream", 204: None}, "jobs",
        query=live.WatchQuery, problems=(404, 422), headers=("Last-Event-ID",)),
    RouteSpec("GET", "/api/me", access.me, {200: Me}, "jobs"),
    RouteSpec("POST", "/api/tickets", access.create_ticket, {201: Ticket}, "jobs"),
    RouteSpec("POST", "/api/videos/upload-url", uploads.begin, {200: UploadTicket}, "videos",
        body=UploadRequest, problems=(503,)),
    RouteSpec("GET", UPLOAD, uploads.resume, {200: UploadTicket}, "videos",
        problems=(404, 413, 503)),
    RouteSpec("POST", f"{UPLOAD}/complete", uploads.complete, {200: Uploaded}, "videos",
        problems=(404, 409, 413, 503)),
    RouteSpec("DELETE", UPLOAD, uploads.abandon, {204: None}, "videos", problems=(404, 503)),
    RouteSpec("POST", "/api/webhooks", webhooks.add, {201: WebhookSecret}, "webhooks",
        body=WebhookRequest),
    RouteSpec("GET", "/api/webhooks", webhooks.list_all, {200: WebhookList}, "webhooks"),
    RouteSpec("DELETE", HOOK, webhooks.switch_off, {204: None}, "webhooks", problems=(404,)),
    RouteSpec("POST", f"{HOOK}/rotate", webhooks.rotate, {200: WebhookSecret}, "webhooks",
        problems=(404,)),
    RouteSpec("GET", f"{HOOK}/deliveries", webhooks.deliveries, {200: DeliveryList}, "webhooks",
        problems=(404,)),
    RouteSpec("POST", f"{HOOK}/deliveries/{{delivery_id}}/redeliver", webhooks.send_again,
        {202: DeliveryView}, "webhooks", problems=(404, 409)),
    RouteSpec("POST", "/api/keys", access.create_key, {201: NewKey}, "operations", Access.ADMIN,
        body=KeyRequest),
    RouteSpec("GET", "/api/keys", access.list_keys, {200: KeyList}, "operations", Access.ADMIN),
    RouteSpec("DELETE", "/api/keys/{key_id}", access.revoke_key, {204: None}, "operations",
        Access.ADMIN, problems=(404,)),
    RouteSpec("GET", "/api/operations", admin.fleet, {200: Fleet}, "operations", Access.ADMIN),
    RouteSpec("POST", "/api/operations/drain", admin.drain, {200: admin.Draining}, "operations",
        Access.ADMIN, body=admin.DrainRequest),
    RouteSpec("POST", "/api/export/upscale", aliases.upscale, {202: UpscaleAccepted},
        "older clients", form=UpscaleFields, problems=_SUBMIT),
    RouteSpec("GET", "/api/export/jobs", aliases.jobs, {200: ExportJobList}, "older clients"),
    RouteSpec("POST", "/api/export/{type}/start", aliases.start, {200: ExportStarted},
        "older clients", body=StartRequest, problems=(400, 404, *_SUBMIT),
        headers=("Idempotency-Key",)),
    RouteSpec("GET", "/api/export/{type}/status/{job_id}", aliases.status, {200: ExportStatus},
        "older clients", problems=(404,)),
    RouteSpec("GET", "/api/exports/active", aliases.active, {200: ExportList}, "older clients"),
    RouteSpec("GET", f"{EXPORT}/remote-status", aliases.remote_status, {200: RemoteStatus},
        "older clients", problems=(404,)),
    RouteSpec("GET", f"{EXPORT}/modal-status", aliases.modal_status, {200: RemoteStatus},
        "older clients", problems=(404,)),
    RouteSpec("DELETE", EXPORT, aliases.cancel, {200: ExportCancelled}, "older clients",
        problems=(400, 404)),
    RouteSpec("GET", "/api/storage/presigned-url", aliases.presigned_url, {200: DownloadUrl},
        "videos", query=DownloadQuery, problems=(404, 422, 503)),
    RouteSpec("POST", "/hooks/runpod/{job_id}/{token}", jobs.provider_hook, {200: health.Health},
        "operations", Access.PUBLIC, problems=(404, 408, 413)),
    RouteSpec("GET", METRICS, health.scrape, {200: "text/plain"}, "operations", Access.ADMIN),
    RouteSpec("GET", "/healthz", health.healthz, {200: health.Health}, "operations", Access.PUBLIC),
    RouteSpec("GET", "/readyz", health.readyz, {200: health.Readiness}, "operations", Access.PUBLIC,
        problems=(503,)),
)  # fmt: skip


def routes(settings: Settings) -> list[BaseRoute]:
    """Returns every route.

    All routes below `/api` and `/ws` authenticate the caller. So does `/metrics`, which also takes
    a key of its own. The provider's webhook carries a token in its path.
    """
    guarded = _guard(Authentication(settings))
    below_api = [route for route in ROUTES if route.path.startswith("/api/")]
    scraped = [route for route in ROUTES if route.path == METRICS]
    others = [route for route in ROUTES if route not in (*below_api, *scraped)]
    return [
        *resources(others),
        *resources(scraped, behind=_guard(Authentication(settings, also=settings.metrics_key))),
        *page.routes(settings),
        *reference.routes(ROUTES, settings),
        Mount(
            "/api",
            routes=[
                *resources(below_api, "/api"),
                WebSocketRoute("/jobs/{job_id}/ws", live.socket),
            ],
            middleware=guarded,
        ),
        Mount(
            "/ws",
            routes=[WebSocketRoute("/export/{export_id}", live.export_socket)],
            middleware=guarded,
        ),
    ]


def _guard(backend: Authentication) -> list[Middleware]:
    return [
        Middleware(AuthenticationMiddleware, backend=backend, on_error=unauthenticated),
        Middleware(Limited),
    ]
