"""The settings of a broker under test."""

from broker.settings import Settings

API_KEY = "test-key-0123456789"


def configured(object_store, **overrides):
    """Returns settings with the real bucket, and a provider where nobody listens; overrides by
    environment name.
    """
    environment = {
        "RUNPOD_API_KEY": "runpod-key",
        "RUNPOD_ENDPOINT_URL": "http://127.0.0.1:9/v2/embedded",
        "R2_ENDPOINT": object_store.url,
        "R2_ACCESS_KEY_ID": object_store.access_key,
        "R2_SECRET_ACCESS_KEY": object_store.secret_key,
        "R2_BUCKET_NAME": object_store.bucket,
        "REELBROKER_API_KEY": API_KEY,
    }
    return Settings(_env_file=None, **(environment | overrides))
