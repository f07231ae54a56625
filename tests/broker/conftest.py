"""Broker parts on real files, a real bucket and a real clock that tests may move."""

import contextlib
import re

import httpx
import pytest

from broker.app import create_app
from broker.jobs.model import Job
from broker.store.engine import open_engine
from broker.store.jobs import JobStore
from tests.broker.configured import API_KEY, configured
from tests.broker.postgres import cluster, new_database


@pytest.fixture(scope="session")
def new_postgres():
    """Makes empty databases with our tables on a PostgreSQL server of its own; returns their
    URLs.
    """
    with cluster() as address:
        template = new_database(address)
        open_engine(template).dispose()
        yield lambda: new_database(address, template.rpartition("/")[2])


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/broker.db"
    return request.getfixturevalue("new_postgres")()


@pytest.fixture
def store(database_url):
    """An empty job store."""
    store = JobStore(open_engine(database_url))
    yield store
    store.close()


@pytest.fixture
def make_job():
    """Builds jobs; overrides say what matters to the test."""

    def make(**overrides):
        number = make.count = make.count + 1
        fields = {
            "id": f"job-{number}",
            "user_id": "u1",
            "type": "framing",
            "input_key": "a.mp4",
            "params": "{}",
            "max_attempts": 3,
            "created_at": 1_000 + number,
            "due_at": 1_000,
        }
        return Job.model_validate(fields | overrides)

    make.count = 0
    return make


@pytest.fixture
def settings(settings_without_database, database_url):
    """The same, with an empty database of each kind."""

    def make(**overrides):
        return settings_without_database(**{"REELBROKER_DATABASE_URL": database_url, **overrides})

    return make


@pytest.fixture
def settings_without_database(tmp_path, object_store):
    """Builds settings with the real bucket, and a provider where nobody listens; overrides by
    environment name.
    """

    def make(**overrides):
        user_id = re.sub("[^A-Za-z0-9_-]", "-", f"u-{tmp_path.name}")[-64:]
        return configured(object_store, **{"REELBROKER_USER_ID": user_id, **overrides})

    return make


@pytest.fixture
def running():
    """Enters a broker's lifespan and hands out a client with the key."""

    @contextlib.asynccontextmanager
    async def enter(settings, transport=None):
        app = create_app(settings, transport=transport)
        async with app.router.lifespan_context(app) as state:

            async def with_state(scope, receive, send):
                scope["state"] = dict(state)
                await app(scope, receive, send)

            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(with_state, raise_app_exceptions=False),
                base_url="http://broker",
                headers={"Authorization": f"Bearer {API_KEY}"},
            ) as client:
                yield client

    return enter
