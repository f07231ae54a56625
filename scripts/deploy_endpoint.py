"""Makes a RunPod serverless endpoint for the worker's image, through RunPod's REST API, or brings the one of that name up to date.

What is asked, in which order, is written once, as a generator that yields a call and is sent its answer: a dry run prints the
calls where the real one makes them. Nothing is made twice: a template or endpoint of the name is looked for first.
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import httpx
from dotenv import dotenv_values

API = "https://rest.runpod.io/v1"
BUCKET = ("R2_ENDPOINT", "R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "R2_BUCKET_NAME")
#: 24 GB each, with NVENC and NVDEC; RunPod takes whichever is free.
GPUS = ("NVIDIA L4", "NVIDIA RTX A5000", "NVIDIA GeForce RTX 4090")
#: That of PyPI's torch (Dockerfile.gpu).
CUDA = "13.0"
#: What says, in a name, that the value is nobody's to read.
_SECRET = re.compile("KEY|SECRET|TOKEN|PASSWORD")
#: RunPod marks the names of endpoints with FlashBoot.
_FLASHBOOT = " -fb"
HELP = """
idle timeout      for so long a worker without a job stays, and is paid, before it is stopped. Short is cheap where jobs come
                  seldom; where they come in a row, longer than the pause between two saves a cold start each.
max workers       the most that RunPod starts, so the most that an hour can cost. It starts one more when a job has waited 4 s.
execution timeout for jobs that bring none. The broker sends one with each job, computed from what is to be made.
FlashBoot         RunPod keeps a stopped worker's state for a while, so that the next start is shorter than a cold one. It costs
                  nothing, and helps the more, the more often jobs come.

The trap: RunPod cuts an endpoint without any job for 3 days to 2 workers at most, and after 7 days to 0, FOR GOOD. Jobs are
then taken and wait for ever. The broker shows such jobs as `stalled`, `reelbroker doctor` names the cause, and running this
again sets the number right. A small job every other day, by cron (scripts/smoke), keeps it from happening.

RUNPOD_API_KEY and the four R2_* are read from the environment or from .env, as the broker reads them.
"""


@dataclass(frozen=True)
class Call:
    """One request to RunPod."""

    method: str
    path: str
    body: dict[str, Any] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)


Steps = Generator[Call, Any, str]


def deploy(template: dict[str, Any], endpoint: dict[str, Any]) -> Steps:
    """Asks for a template and an endpoint of it; returns the endpoint's id."""
    # Without this, RunPod lists only templates that no endpoint uses.
    bound = {"includeEndpointBoundTemplates": "true"}
    template_id = yield from _put("templates", template, ("category", "isServerless"), bound)
    return (yield from _put("endpoints", endpoint | {"templateId": template_id}, ("computeType",), {}))


def _put(kind: str, wanted: dict[str, Any], only_new: tuple[str, ...], query: dict[str, str]) -> Steps:
    """Makes one, or changes the one of that name; `only_new` are the fields that never change."""
    listed = yield Call("GET", f"/{kind}", query=query)
    names = (wanted["name"], wanted["name"] + _FLASHBOOT)
    found = [one for one in listed if one.get("name") in names]
    if len(found) > 1:
        raise SystemExit(
            f"RunPod has {len(found)} {kind} named {wanted['name']}; delete all but one, or choose another --name"
        )
    if not found:
        return str((yield Call("POST", f"/{kind}", wanted))["id"])
    if found[0].get("workersMax", wanted.get("workersMax", 0)) < wanted.get("workersMax", 0):
        _tell(
            f"It had {found[0]['workersMax']} workers at most: set that low, or idle for days (see --help). Now {wanted['workersMax']}."
        )
    changes = {name: value for name, value in wanted.items() if name not in only_new}
    yield Call("PATCH", f"/{kind}/{found[0]['id']}", changes)
    return str(found[0]["id"])


def run(steps: Steps, http: httpx.Client) -> str:
    """Makes the calls, one after the other."""
    answer = None
    while True:
        try:
            call = steps.send(answer)
        except StopIteration as end:
            return str(end.value)
        answer = _answer(http, call)


def _answer(http: httpx.Client, call: Call) -> Any:
    try:
        reply = http.request(call.method, call.path, params=call.query, json=call.body or None)
        if reply.is_success:
            return reply.json()
        why = f"{reply.status_code} {reply.text[:500]}"
    except (httpx.HTTPError, ValueError) as error:
        why = repr(error)
    raise SystemExit(f"{call.method} {call.path}: {why}\nNothing is made twice: mend it and run this again.")


def show(steps: Steps) -> None:
    """Prints the calls as they are where RunPod knows nothing of that name yet, as one JSON document a line."""
    answer: Any = None
    while True:
        try:
            call = steps.send(answer)
        except StopIteration:
            return
        print(
            json.dumps(
                {"method": call.method, "path": call.path, "query": call.query, "body": _masked(call.body)}
            )
        )
        answer = [] if call.method == "GET" else {"id": f"ID_OF_{call.path[1:].upper()}"}


def _masked(body: dict[str, Any]) -> dict[str, Any]:
    hidden = {
        name: "***" if _SECRET.search(name) and value else value
        for name, value in body.get("env", {}).items()
    }
    return body | ({"env": hidden} if hidden else {})


def _template(chosen: argparse.Namespace, known: Mapping[str, str | None]) -> dict[str, Any]:
    env = {name: known.get(name) or "" for name in BUCKET} | dict(chosen.env)
    return {
        "name": chosen.name,
        "imageName": chosen.image,
        "category": "NVIDIA",
        "isServerless": True,
        "containerDiskInGb": chosen.disk,
        "env": env,
    } | ({"containerRegistryAuthId": chosen.registry_auth} if chosen.registry_auth else {})


def _endpoint(chosen: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": chosen.name,
        "computeType": "GPU",
        "gpuTypeIds": chosen.gpu or list(GPUS),
        "gpuCount": 1,
        "allowedCudaVersions": chosen.cuda or [CUDA],
        "workersMin": chosen.min_workers,
        "workersMax": chosen.max_workers,
        "idleTimeout": chosen.idle_timeout,
        "executionTimeoutMs": chosen.execution_timeout * 1000,
        "flashboot": chosen.flashboot,
        "scalerType": "QUEUE_DELAY",
        "scalerValue": 4,
    }


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError("NAME=VALUE")
    return name, value


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/deploy-endpoint",
        description="Make the RunPod endpoint for the worker's image, or bring the one of that name up to date.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "image",
        help="the image that Dockerfile.gpu makes, where RunPod can pull it: you/reelbroker-worker:0.1.0",
    )
    add(
        "--dry-run",
        action="store_true",
        help="print the calls, without secrets; so it is also without a RUNPOD_API_KEY",
    )
    add("--name", default="reelbroker", help="of template and endpoint (%(default)s)")
    add("--gpu", action="append", metavar="NAME", help=f"may be given several times ({', '.join(GPUS)})")
    add(
        "--cuda",
        action="append",
        metavar="VERSION",
        help="of the host's driver, exactly; may be given several times (13.0, as torch is)",
    )
    add("--max-workers", type=int, default=3, metavar="N", help="(%(default)s)")
    add(
        "--min-workers",
        type=int,
        default=0,
        metavar="N",
        help="these are always on, and always paid (%(default)s)",
    )
    add("--idle-timeout", type=int, default=5, metavar="SECONDS", help="(%(default)s)")
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
        type=_setting,
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="the worker's settings (.env.example)",
    )
    add("--registry-auth", metavar="ID", help="RunPod's id of the credentials for a private registry")
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
    steps = deploy(_template(chosen, known), _endpoint(chosen))
    key = known.get("RUNPOD_API_KEY")
    if chosen.dry_run or not key:
        show(steps)
        if not key:
            _tell("A dry run: RUNPOD_API_KEY is not set.")
        return
    if missing := [name for name in BUCKET if not known.get(name)]:
        _refuse(f"The worker needs {', '.join(missing)}: set them in the environment or in .env.")
    with httpx.Client(base_url=chosen.api, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
        endpoint_id = run(steps, http)
    print(f"RUNPOD_ENDPOINT_URL=https://api.runpod.ai/v2/{endpoint_id}")
    _tell("Idle for 3 days it is cut to 2 workers at most, for 7 to none: see --help.")


if __name__ == "__main__":
    main()
