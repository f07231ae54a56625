"""A running broker, a provider that runs nothing, and the bucket."""

import pytest

from broker.bucket import open_bucket
from schemas.keys import object_key
from tests.broker.api.calls import JOB
from tests.broker.api.served import serve
from tests.broker.provider import Provider


@pytest.fixture
def provider():
    """A provider that takes jobs and runs none."""
    return Provider()


@pytest.fixture
async def client(settings, running, provider):
    """A client with the key, on a running broker."""
    made = settings()
    open_bucket(made).write(object_key(made.user_id, JOB["input_key"]), b"a video")
    async with running(made, provider) as client:
        yield client


@pytest.fixture
def bucket(settings):
    """The bucket, for a worker's hand in it."""
    return open_bucket(settings())


@pytest.fixture
def served(settings, provider):
    """A broker on a real port."""
    made = settings()
    open_bucket(made).write(object_key(made.user_id, JOB["input_key"]), b"a video")
    with serve(made, provider) as served:
        yield served
