"""The route table."""

from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.routing import BaseRoute, Mount, Route

from broker.api import endpoints
from broker.api.auth import BearerKey, unauthenticated
from broker.settings import Settings


def routes(settings: Settings) -> list[BaseRoute]:
    """Returns every route; all below `/api` ask for a key, and the provider's call carries one in its path."""
    return [
        Route("/healthz", endpoints.healthz),
        Route("/readyz", endpoints.readyz),
        Route("/hooks/runpod/{job_id}/{token}", endpoints.runpod_hook, methods=["POST"]),
        Mount(
            "/api",
            routes=[
                Route("/jobs", endpoints.submit_job, methods=["POST"]),
                Route("/jobs", endpoints.list_jobs, methods=["GET"]),
                Route("/jobs/{job_id}", endpoints.get_job, methods=["GET"]),
                Route("/jobs/{job_id}", endpoints.submit_job, methods=["PUT"]),
                Route("/jobs/{job_id}/cancel", endpoints.cancel_job, methods=["POST"]),
                Route("/jobs/{job_id}/output", endpoints.job_output, methods=["GET"]),
                Route("/operations/drain", endpoints.drain, methods=["POST"]),
                Route("/videos/upload-url", endpoints.upload_url, methods=["POST"]),
            ],
            middleware=[
                Middleware(AuthenticationMiddleware, backend=BearerKey(settings), on_error=unauthenticated)
            ],
        ),
    ]
