"""Worker parts with the real bucket, and jobs for them."""

import secrets

import boto3
import pytest

from gpu_worker.bucket import open_bucket
from gpu_worker.host import accelerator
from gpu_worker.settings import Settings
from tests.gpu_worker.pretend import STATE, PretendAccelerator, pretend_device


@pytest.fixture
def settings(object_store, tmp_path):
    """Builds settings with the real bucket; overrides by environment name."""

    def make(**overrides):
        environment = {
            "R2_ENDPOINT": object_store.url,
            "R2_ACCESS_KEY_ID": object_store.access_key,
            "R2_SECRET_ACCESS_KEY": object_store.secret_key,
            "R2_BUCKET_NAME": object_store.bucket,
            "REELBROKER_WORK_DIR": tmp_path / "work",
            "REELBROKER_X264_PRESET": "ultrafast",
        }
        (tmp_path / "work").mkdir(exist_ok=True)
        return Settings(**(environment | overrides))

    return make


@pytest.fixture
def bucket(settings):
    """The worker's own view of the bucket."""
    return open_bucket(settings())


@pytest.fixture
def objects(object_store):
    """The bucket as an outsider with all rights sees it."""
    client = boto3.client(
        "s3",
        endpoint_url=object_store.url,
        aws_access_key_id=object_store.access_key,
        aws_secret_access_key=object_store.secret_key,
        region_name="auto",
    )

    class Objects:
        def put(self, key, body):
            client.put_object(Bucket=object_store.bucket, Key=key, Body=body)

        def get(self, key):
            return client.get_object(Bucket=object_store.bucket, Key=key)["Body"].read()

        def keys(self, prefix):
            found = client.list_objects_v2(Bucket=object_store.bucket, Prefix=prefix).get(
                "Contents", []
            )
            return sorted(entry["Key"] for entry in found)

    return Objects()


@pytest.fixture
def user_id():
    """A user nobody else has."""
    return f"u{secrets.token_hex(6)}"


@pytest.fixture
def pretend(monkeypatch):
    """A device that is not the CPU, its counts at 0."""
    monkeypatch.setattr(accelerator, "Accelerator", PretendAccelerator)
    STATE.device = pretend_device()
    STATE.accelerator = accelerator.accelerator(STATE.device)
    STATE.reset()
    yield STATE
    STATE.reset()
