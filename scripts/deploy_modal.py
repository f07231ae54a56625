"""Deploys the worker's app to Modal: the image that RunPod uses, the bucket's secret, the GPUs.

It writes the secret that the function reads, then runs `modal deploy -m gpu_worker.modal_app`.
Modal identifies app, function and secret by name, so a second run updates them. A dry run prints
what a deployment would send; without a token, each run is one.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import NoReturn

import modal
from dotenv import dotenv_values
from worker_env import BUCKET, setting

TOKEN = ("MODAL_TOKEN_ID", "MODAL_TOKEN_SECRET")
HELP = """
scaledown window  how long a container without a job stays, and costs, before Modal stops it. Short
                  is cheap where jobs come seldom; where they come in a row, longer than the pause
                  between two saves a cold start each.
max containers    the most that Modal starts, so the most that an hour can cost.
GPU               Modal takes the first of the list that is free. L4, A10, L40S and T4 have NVENC;
                  A100, H100 and B200 have not, and encode on the CPU.
timeout           the longest job and 600 s for the worker's start. The worker keeps the deadline
                  that the broker sends with each job.

MODAL_TOKEN_ID, MODAL_TOKEN_SECRET, MODAL_ENVIRONMENT and the R2_* are read from the environment
or from .env, as the broker reads them.
"""


def deploy(settings: Mapping[str, str], secret: Mapping[str, str]) -> None:
    """Writes the secret and deploys the app; exits where Modal refuses."""
    os.environ.update(settings)
    name = settings["REELBROKER_MODAL_SECRETS"].split(",")[0]
    environment = settings["MODAL_ENVIRONMENT"]
    try:
        modal.Secret.objects.create(
            name, dict(secret), allow_existing=True, environment_name=environment
        )
        modal.Secret.from_name(name, environment_name=environment).update(dict(secret))
    except modal.Error as error:
        raise SystemExit(f"Modal refuses the secret {name}: {error}") from error
    run = subprocess.run(
        [sys.executable, "-m", "modal", "deploy", "-m", "gpu_worker.modal_app"],
        stdout=sys.stderr,
        check=False,
    )
    if run.returncode:
        raise SystemExit(run.returncode)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/deploy-modal",
        description="Deploy the worker's app to Modal.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "image",
        help="the image that Dockerfile.gpu makes, where Modal can pull it: "
        "you/reelbroker-worker:0.1.0",
    )
    add("--dry-run", action="store_true", help="print what would be sent, without secrets")
    add("--gpu", action="append", metavar="GPU", help="may be given several times (L4 A10 L40S T4)")
    add("--max-containers", type=int, default=10, metavar="N", help="(%(default)s)")
    add("--scaledown-window", type=int, default=60, metavar="SECONDS", help="(%(default)s)")
    add(
        "--timeout", type=int, default=7200, metavar="SECONDS", help="the longest job (%(default)s)"
    )
    add("--secret", default="reelbroker", help="the name of the secret (%(default)s)")
    add(
        "--env",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="the worker's settings (.env.example); they go into the secret",
    )
    return parser.parse_args()


def _refuse(text: str) -> NoReturn:
    print(text, file=sys.stderr)
    raise SystemExit(2)


def main() -> None:
    """Prints the broker's settings for the deployed function."""
    chosen = _parsed()
    known = {name: value or "" for name, value in dotenv_values(".env").items()} | dict(os.environ)
    settings = {
        "MODAL_ENVIRONMENT": known.get("MODAL_ENVIRONMENT") or "main",
        "REELBROKER_MODAL_APP": known.get("REELBROKER_MODAL_APP") or "reelbroker",
        "REELBROKER_MODAL_FUNCTION": known.get("REELBROKER_MODAL_FUNCTION") or "export",
        "REELBROKER_MODAL_IMAGE": chosen.image,
        "REELBROKER_MODAL_SECRETS": chosen.secret,
        "REELBROKER_MODAL_GPUS": ",".join(chosen.gpu or ("L4", "A10", "L40S", "T4")),
        "REELBROKER_MODAL_MAX_CONTAINERS": str(chosen.max_containers),
        "REELBROKER_MODAL_SCALEDOWN_WINDOW": str(chosen.scaledown_window),
        "REELBROKER_EXECUTION_TIMEOUT_SECONDS": str(chosen.timeout),
    }
    secret = {name: known.get(name, "") for name in BUCKET} | dict(chosen.env)
    tokens = {name: known.get(name, "") for name in TOKEN}
    absent = [name for name, value in tokens.items() if not value]
    if chosen.dry_run or absent:
        for name, value in settings.items():
            print(f"{name}={value}")
        print(f"secret {chosen.secret}: {', '.join(secret)}")
        if absent:
            print(f"A dry run: set {' and '.join(absent)} to deploy.", file=sys.stderr)
        return
    if missing := [name for name, value in secret.items() if not value]:
        _refuse(f"Set {', '.join(missing)} in the environment or in .env.")
    deploy(settings | tokens, secret)
    print("MODAL_ENABLED=true")
    for name in ("MODAL_ENVIRONMENT", "REELBROKER_MODAL_APP", "REELBROKER_MODAL_FUNCTION"):
        print(f"{name}={settings[name]}")


if __name__ == "__main__":
    main()
