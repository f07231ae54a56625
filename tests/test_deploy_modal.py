"""What scripts/deploy-modal sends: Modal's unmodified client and `modal deploy`, against the
embedded server.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.broker.modal_side import TARGET, TOKEN, modal_server

ROOT = Path(__file__).parents[1]
BUCKET = {
    "R2_ENDPOINT": "https://account.r2.cloudflarestorage.com",
    "R2_ACCESS_KEY_ID": "an-access-key",
    "R2_SECRET_ACCESS_KEY": "a-bucket-secret",
    "R2_BUCKET_NAME": "videos",
}
ACCOUNT = {"MODAL_TOKEN_ID": TOKEN[0], "MODAL_TOKEN_SECRET": TOKEN[1]}


async def deploy(folder, *words, **environment):
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, ROOT / "scripts" / "deploy_modal.py", *words],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
async def served(tmp_path):
    """The server, and the environment that leads a client to it."""
    async with modal_server(tmp_path) as served:
        yield served, {"MODAL_SERVER_URL": f"http://127.0.0.1:{served.port}"}


def sent(server, name):
    return [request for rpc, request in server.requests if rpc == name]


async def test_the_function_that_modal_gets(served, tmp_path):
    """Image, GPUs in order, limits, scaling and the secret by name; the broker finds it after."""
    served, server = served
    words = ("you/worker:1", "--gpu", "L40S", "--gpu", "T4", "--max-containers", "7")
    words = (
        *words,
        "--scaledown-window",
        "30",
        "--timeout",
        "3600",
        "--env",
        "REELBROKER_X264_CRF=20",
    )
    run = await deploy(tmp_path, *words, **server, **ACCOUNT, **BUCKET)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "MODAL_ENABLED=true",
        "MODAL_ENVIRONMENT=main",
        "REELBROKER_MODAL_APP=reelbroker",
        "REELBROKER_MODAL_FUNCTION=export",
    ]
    (created,) = sent(served.server, "FunctionCreate")
    ranked = [one.function for one in created.function_data.ranked_functions]
    assert [one.resources.gpu_config.gpu_type for one in ranked] == ["L40S", "T4"]
    function = ranked[0]
    assert (function.module_name, function.function_name) == ("gpu_worker.modal_app", "export")
    assert (function.timeout_secs, function.autoscaler_settings.max_containers) == (4200, 7)
    assert function.autoscaler_settings.scaledown_window == 30
    assert (len(function.secret_ids), len(function.object_dependencies)) == (1, 2)
    # One attempt is the broker's to repeat; Modal repeats only what died.
    assert function.retry_policy.retries == 0
    commands = [
        command
        for request in sent(served.server, "ImageGetOrCreate")
        for command in request.image.dockerfile_commands
    ]
    assert commands[0] == "FROM you/worker:1"
    assert "ENTRYPOINT []" in commands
    assert any("PYTHONPATH=/worker" in command for command in commands)
    assert not any("a-bucket-secret" in command for command in commands)
    (update,) = sent(served.server, "SecretUpdate")
    assert {one.key: one.value for one in update.updates} == BUCKET | {"REELBROKER_X264_CRF": "20"}
    assert (await served.provider.health(TARGET)).jobs_queued == 0
    again = await deploy(tmp_path, *words, **server, **ACCOUNT, **BUCKET)
    assert again.stdout == run.stdout
    assert "a-bucket-secret" not in run.stdout + run.stderr


async def test_a_dry_run_sends_nothing(served, tmp_path):
    """And prints no secret."""
    served, server = served
    run = await deploy(tmp_path, "you/worker:1", "--dry-run", **server, **BUCKET)
    assert "REELBROKER_MODAL_GPUS=L4,A10,L40S,T4" in run.stdout
    assert "secret reelbroker: R2_ENDPOINT, R2_ACCESS_KEY_ID" in run.stdout
    assert "a-bucket-secret" not in run.stdout
    assert served.server.calls == []


async def test_what_stands_in_the_way_is_named(served, tmp_path):
    """A missing setting, before anything is sent; a wrong token."""
    served, server = served
    missing = await deploy(tmp_path, "you/worker:1", **server, **ACCOUNT)
    assert missing.returncode == 2
    assert missing.stderr.startswith("Set R2_ENDPOINT, R2_ACCESS_KEY_ID")
    tokenless = await deploy(tmp_path, "you/worker:1", **server, **BUCKET)
    assert (tokenless.returncode, tokenless.stderr) == (
        0,
        "A dry run: set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET to deploy.\n",
    )
    wrong = await deploy(
        tmp_path, "you/worker:1", **server, **BUCKET, **(ACCOUNT | {"MODAL_TOKEN_SECRET": "no"})
    )
    assert wrong.returncode == 1
    assert "Modal refuses the secret reelbroker: Token validation failed" in wrong.stderr
    assert served.server.calls == []
