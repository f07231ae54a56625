"""Makes or updates the RunPod serverless endpoint for the worker's image.

It speaks RunPod's REST API v2, which refuses fields that it does not know
(https://docs.runpod.io/api-reference-v2/overview); v1 is retired in 2026. Nothing is made twice: it
asks for an endpoint of the name first. A dry run prints the calls.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import httpx
from dotenv import dotenv_values
from worker_env import BUCKET, setting

API = "https://api.runpod.io/v2"
#: L4, A5000 and 3090; 4090. 24 GB each, with NVENC and NVDEC; RunPod takes whichever has one free.
POOLS = ("AMPERE_24", "ADA_24")
#: That of PyPI's torch (Dockerfile.gpu): what a host's driver must know at least.
CUDA = "13.0"
#: Parts of a name that mark its value as a secret.
_SECRET = re.compile("KEY|SECRET|TOKEN|PASSWORD", re.IGNORECASE)
#: RunPod has marked the names of endpoints with FlashBoot so, and lists them so.
_FLASHBOOT = " -fb"
HELP = """
idle timeout      for so long a worker without a job stays, and is paid, before it is stopped.
                  Short is cheap where jobs come seldom; where they come in a row, longer than the
                  pause between two saves a cold start each.
max workers       the most that RunPod starts, so the most that an hour can cost. It starts one
                  more when a job has waited 4 s.
execution timeout for jobs that bring none. The broker sends one with each job, computed from what
                  is to be made.
FlashBoot         RunPod keeps a stopped worker's state for a while, so that the next start is
                  shorter than a cold one. It costs nothing, and helps the more, the more often
                  jobs come.

The trap: RunPod cuts an endpoint without any job for 3 days to 2 workers at most, and after 7 days
to 0, FOR GOOD. Jobs are then taken and wait for ever. The broker shows such jobs as `stalled`,
`reelbroker doctor` names the cause, and running this again sets the number right. A small job every
other day, by cron (scripts/smoke), keeps it from happening.

RUNPOD_API_KEY and the four R2_* are read from the environment or from .env, as the broker reads
them.
"""


def deploy(http: httpx.Client, wanted: dict[str, Any]) -> str:
    """Makes the endpoint, or changes the one of that name; returns its id."""
    names = (wanted["name"], wanted["name"] + _FLASHBOOT)
    found = [one for one in _ask(http, "GET", "/serverless")["endpoints"] if one["name"] in names]
    if len(found) > 1:
        raise SystemExit(
            f"RunPod has {len(found)} endpoints named {wanted['name']}; "
            "delete all but one, or choose another --name"
        )
    if not found:
        return str(_ask(http, "POST", "/serverless", wanted)["id"])
    had, most = found[0]["workers"]["max"], wanted["workers"]["max"]
    if had < most:
        _tell(
            f"It had {had} workers at most: set that low, or idle for days (see --help). "
            f"Now {most}."
        )
    _ask(http, "PATCH", f"/serverless/{found[0]['id']}", changes(wanted))
    return str(found[0]["id"])


def changes(wanted: dict[str, Any]) -> dict[str, Any]:
    """Returns what changes an endpoint that is there: all but its type, which never changes."""
    return {name: value for name, value in wanted.items() if name != "type"}


def _ask(http: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    try:
        reply = http.request(method, path, json=body)
        if reply.is_success:
            return reply.json() if method != "PATCH" else None
        why = f"{reply.status_code} {reply.text[:500]}"
    except (httpx.HTTPError, ValueError) as error:
        why = repr(error)
    raise SystemExit(f"{method} {path}: {why}\nNothing is made twice: fix it and run this again.")


def show(wanted: dict[str, Any]) -> None:
    """Prints the calls, without secrets, as one JSON document a line.

    The first asks for endpoints, the second makes or changes one.
    """
    shown = _masked(wanted)
    for method, path, body in (
        ("GET", "/serverless", None),
        ("POST", "/serverless", shown),
        ("PATCH", "/serverless/ID", changes(shown)),
    ):
        print(json.dumps({"method": method, "path": path, "body": body}))


def _masked(wanted: dict[str, Any]) -> dict[str, Any]:
    hidden = {
        name: "***" if _SECRET.search(name) and value else value
        for name, value in wanted["env"].items()
    }
    return wanted | {"env": hidden}


def _endpoint(chosen: argparse.Namespace, known: Mapping[str, str | None]) -> dict[str, Any]:
    return {
        "name": chosen.name,
        "type": "QUEUE",
        "image": chosen.image,
        "disk": chosen.disk,
        # Where its driver is too old, a worker must end, and not go on with the CPU at the price of
        # a GPU.
        "env": {name: known.get(name) or "" for name in BUCKET}
        | {"REELBROKER_DEVICE": "cuda"}
        | dict(chosen.env),
        # The empty set is sent, too: an endpoint that had a set would refuse the floor.
        "gpu": {
            "pools": chosen.gpu or list(POOLS),
            "count": 1,
            "minCudaVersion": chosen.cuda,
            "allowedCudaVersions": [],
        },
        "workers": {
            "min": chosen.min_workers,
            "max": chosen.max_workers,
            "idleTimeout": chosen.idle_timeout,
        },
        "scaling": {"type": "QUEUE_DELAY", "queueDelay": 4},
        "timeout": chosen.execution_timeout * 1000,
        "flashboot": "FLASHBOOT" if chosen.flashboot else "OFF",
    } | ({"registry": chosen.registry_auth} if chosen.registry_auth else {})


def _idle(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= 3600):
        raise argparse.ArgumentTypeError("1 to 3600")
    return int(text)


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/deploy-endpoint",
        description="Make or update the RunPod endpoint for the worker's image.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "image",
        help="the image that Dockerfile.gpu makes, where RunPod can pull it: "
        "you/reelbroker-worker:0.1.0",
    )
    add(
        "--dry-run",
        action="store_true",
        help="print the calls, without secrets; so it is also without a RUNPOD_API_KEY",
    )
    add("--name", default="reelbroker", help="of the endpoint (%(default)s)")
    add(
        "--gpu",
        action="append",
        metavar="POOL",
        help="RunPod's name of a pool of GPUs; may be given several times "
        f"({', '.join(POOLS)}: 24 GB, with NVENC)",
    )
    add(
        "--cuda",
        default=CUDA,
        metavar="VERSION",
        help="the least that a host's driver must know (%(default)s, as torch is)",
    )
    add("--max-workers", type=int, default=3, metavar="N", help="(%(default)s)")
    add(
        "--min-workers",
        type=int,
        default=0,
        metavar="N",
        help="these are always on, and always paid (%(default)s)",
    )
    add("--idle-timeout", type=_idle, default=5, metavar="SECONDS", help="(%(default)s)")
    add("--execution-timeout", type=int, default=7200, metavar="SECONDS", help="(%(default)s)")
    add("--flashboot", action=argparse.BooleanOptionalAction, default=True, help="(on)")
    add(
        "--disk",
        type=int,
        default=40,
        metavar="GB",
        help="for sources and results while they are worked on (%(default)s)",
    )
    add(
        "--env",
        type=setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="the worker's settings (.env.example)",
    )
    add(
        "--registry-auth",
        metavar="ID",
        help="RunPod's id of the credentials for a private registry",
    )
    add("--api", default=API, help=argparse.SUPPRESS)
    return parser.parse_args()


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


def _refuse(text: str) -> NoReturn:
    _tell(text)
    raise SystemExit(2)


def main() -> None:
    chosen = _parsed()
    known = dotenv_values(".env") | dict(os.environ)
    wanted = _endpoint(chosen, known)
    key = known.get("RUNPOD_API_KEY")
    if chosen.dry_run or not key:
        show(wanted)
        if not key:
            _tell("A dry run: RUNPOD_API_KEY is not set.")
        return
    if missing := [name for name in BUCKET if not known.get(name)]:
        _refuse(f"The worker needs {', '.join(missing)}: set them in the environment or in .env.")
    with httpx.Client(
        base_url=chosen.api, headers={"Authorization": f"Bearer {key}"}, timeout=60
    ) as http:
        endpoint_id = deploy(http, wanted)
    print(f"RUNPOD_ENDPOINT_URL=https://api.runpod.ai/v2/{endpoint_id}")
    _tell("Idle for 3 days it is cut to 2 workers at most, for 7 to none: see --help.")


if __name__ == "__main__":
    main()
