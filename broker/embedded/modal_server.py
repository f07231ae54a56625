"""A Modal-compatible server for one machine: gRPC without TLS, on loopback.

The unmodified client spawns, polls and cancels here; unmodified containers
(`python -m modal._container_entrypoint`) take inputs and put outputs here; and the unmodified
`modal deploy` deploys here, at the server's start. So the function that runs is the one that was
deployed: `ContainerArguments` in the file `container.bin`.

queue.py holds the states and lifetimes. Modal calls a job an input of a function call; here each
call has one input. This module leaves out classes, generators, maps, blobs, images, scaling and
logs. Modal's protocol is internal to its packages: the version is pinned, and only this folder
uses it.
"""

import argparse
import asyncio
import base64
import contextlib
import os
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from grpclib import GRPCError, Status
from grpclib.server import Server, Stream
from modal_proto import api_grpc, api_pb2

from broker.embedded.changes import Changes
from broker.embedded.modal_environment import (
    CONTAINER_HEADER,
    HEARTBEAT_SECONDS,
    client_environment,
    container_arguments,
)
from broker.embedded.queue import JobQueue, Limits, QueuedJob, State

log = structlog.get_logger(__name__)

EXPIRE_SECONDS = 0.25
POLL_SECONDS = 20.0
#: How long the server holds a heartbeat: less than the time between two.
HELD_SECONDS = HEARTBEAT_SECONDS - 1.0
WEEK_SECONDS = 604_800.0
#: Modal keeps a waiting input as long as the app is deployed; the queue needs a number.
WAIT_SECONDS = 10 * 365 * 86_400.0
#: In a result, before the platform's own failures.
RESULT_STATUS = {
    State.COMPLETED: api_pb2.GenericResult.GENERIC_STATUS_SUCCESS,
    State.FAILED: api_pb2.GenericResult.GENERIC_STATUS_FAILURE,
    State.CANCELLED: api_pb2.GenericResult.GENERIC_STATUS_TERMINATED,
    State.TIMED_OUT: api_pb2.GenericResult.GENERIC_STATUS_TIMEOUT,
}
_FORMATS = (api_pb2.DATA_FORMAT_PICKLE, api_pb2.DATA_FORMAT_CBOR)
#: The client offers builders by their date; any one will do, as nothing is built.
_BUILDER = "2025.06"
#: The largest arguments that an asynchronous call may carry without a blob.
_MOST_BYTES = 1 << 20

Rpc = Callable[[Any, str], Awaitable[Any]]


@dataclass(frozen=True)
class ModalConfig:
    """The settings of a server. A token is its id and its secret."""

    token: tuple[str, str]
    folder: Path
    limits: Limits = field(default_factory=lambda: Limits(15.0, WEEK_SECONDS, retries=None))


@dataclass
class Deployed:
    """The one deployed function, and the objects that its deploy made."""

    environment: str = "main"
    app: str = ""
    name: str = ""
    function: api_pb2.Function = field(default_factory=api_pb2.Function)

    @property
    def app_id(self) -> str:
        return _id("ap", self.app)

    @property
    def function_id(self) -> str:
        return _id("fu", f"{self.app}/{self.name}")


class ModalServer:
    """The rpcs over one queue."""

    def __init__(self, config: ModalConfig) -> None:
        self._config = config
        self._queue = JobQueue(config.folder / "modal.db", config.limits, time.time())
        self._changes = Changes()
        self._deployed = _read_deployed(container_arguments(config.folder))
        self._deploying = Deployed()
        self._rpcs: dict[str, Rpc] = {
            "FunctionGet": self._function_get,
            "FunctionMap": self._function_map,
            "FunctionGetOutputs": self._function_get_outputs,
            "FunctionCallCancel": self._function_call_cancel,
            "FunctionGetCurrentStats": self._function_get_current_stats,
            "FunctionGetCallGraph": self._function_get_call_graph,
            "ContainerHello": self._container_hello,
            "ContainerHeartbeat": self._container_heartbeat,
            "FunctionGetInputs": self._function_get_inputs,
            "FunctionPutOutputs": self._function_put_outputs,
            "AppGetByDeploymentName": self._app_get_by_deployment_name,
            "EnvironmentGetOrCreate": self._environment_get_or_create,
            "ImageGetOrCreate": self._image_get_or_create,
            "MountGetOrCreate": self._mount_get_or_create,
            "SecretGetOrCreate": self._secret_get_or_create,
            "FunctionPrecreate": self._function_precreate,
            "FunctionCreate": self._function_create,
            "AppPublish": self._app_publish,
        } | dict.fromkeys(_EMPTY, _nothing)

    @contextlib.asynccontextmanager
    async def serving(self, port: int) -> Any:
        """Listens on loopback and applies the queue's lifetimes, inside the block."""
        server, expiry = Server([self]), asyncio.create_task(self._expire())
        await server.start("127.0.0.1", port)
        try:
            yield
        finally:
            expiry.cancel()
            server.close()
            await asyncio.gather(expiry, server.wait_closed(), return_exceptions=True)
            self._queue.close()

    # ── any rpc ─────────────────────────────────────────────────────────────────────────────────

    def __mapping__(self) -> Any:
        return api_grpc.ModalClientBase.__mapping__(self)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        """Returns the handler of an rpc, by its name."""
        if not name[0].isupper():
            raise AttributeError(name)
        rpc = self._rpcs.get(name)

        async def handler(stream: Stream[Any, Any]) -> None:
            request = await stream.recv_message()
            if rpc is None:
                raise GRPCError(Status.UNIMPLEMENTED, f"the embedded server has no {name}")
            caller = self._caller(dict(stream.metadata or {}))
            reply = await rpc(request, caller)
            await stream.send_message(stream._send_type() if reply is None else reply)

        return handler

    def _caller(self, headers: dict[Any, Any]) -> str:
        """Returns a container's id, or "" for a client; refuses others."""
        container = str(headers.get(CONTAINER_HEADER, ""))
        key, _, name = container.partition("/")
        if container and key == self._config.token[1]:
            return name
        token = headers.get("x-modal-token-id"), headers.get("x-modal-token-secret")
        if token != self._config.token:
            raise GRPCError(Status.UNAUTHENTICATED, "Token validation failed")
        return ""

    # ── clients ─────────────────────────────────────────────────────────────────────────────────

    async def _function_get(self, request: Any, _: str) -> Any:
        deployed = self._deployed
        named = (request.environment_name or "main", request.app_name, request.object_tag)
        if deployed is None or named != (deployed.environment, deployed.app, deployed.name):
            raise GRPCError(Status.NOT_FOUND, f"No function {named[1]}/{named[2]} in {named[0]}")
        reply = api_pb2.FunctionGetResponse(
            function_id=deployed.function_id, handle_metadata=_metadata(deployed)
        )
        reply.function.ranked_functions.add(rank=0).function.CopyFrom(deployed.function)
        return reply

    async def _function_map(self, request: Any, _: str) -> Any:
        deployed = self._of(request.function_id)
        (item,) = request.pipelined_inputs
        sent = item.input
        job = QueuedJob(
            id=f"fc-{uuid.uuid4().hex}",
            input={"args": base64.b64encode(sent.args).decode(), "format": sent.data_format},
            execution_timeout=float(deployed.function.timeout_secs or 300),
            ttl=WAIT_SECONDS,
            created_at=time.time(),
        )
        self._queue.add(job)
        self._changes.notify()
        reply = api_pb2.FunctionMapResponse(function_call_id=job.id, function_call_jwt=job.id)
        reply.pipelined_inputs.add(idx=0, input_id=_input_id(job), input_jwt=job.id)
        return reply

    async def _function_get_outputs(self, request: Any, _: str) -> Any:
        job = self._call(request.function_call_id)
        status = RESULT_STATUS.get(job.state)
        if status is None:
            return api_pb2.FunctionGetOutputsResponse(num_unfinished_inputs=1)
        output = job.output if isinstance(job.output, dict) else {}
        result = api_pb2.GenericResult(
            status=status,
            exception=str(job.error or ""),
            data=base64.b64decode(output.get("data", "")),
        )
        reply = api_pb2.FunctionGetOutputsResponse(num_unfinished_inputs=0, idxs=[0])
        reply.outputs.add(
            result=result,
            idx=0,
            input_id=_input_id(job),
            data_format=output.get("format", api_pb2.DATA_FORMAT_CBOR),
        )
        return reply

    async def _function_call_cancel(self, request: Any, _: str) -> None:
        self._queue.cancel(self._call(request.function_call_id), time.time())
        self._changes.notify()

    async def _function_get_current_stats(self, request: Any, _: str) -> Any:
        self._of(request.function_id)
        jobs = self._queue.count_jobs()
        return api_pb2.FunctionStats(
            backlog=jobs[State.IN_QUEUE],
            num_total_tasks=len(self._queue.workers),
            num_running_inputs=jobs[State.IN_PROGRESS],
        )

    async def _function_get_call_graph(self, request: Any, _: str) -> Any:
        job = self._call(request.function_call_id)
        reply = api_pb2.FunctionGetCallGraphResponse()
        reply.inputs.add(
            input_id=_input_id(job),
            function_call_id=job.id,
            status=RESULT_STATUS.get(job.state, 0),
            task_id=job.worker_id or "",
        )
        reply.function_calls.add(function_call_id=job.id)
        return reply

    # ── containers ──────────────────────────────────────────────────────────────────────────────

    async def _container_hello(self, _: Any, container: str) -> None:
        self._queue.replace(container, time.time())
        # The supervisor waits for this line.
        log.info("hello", container=container)
        self._changes.notify()

    async def _container_heartbeat(self, _: Any, container: str) -> Any:
        held = [job.id for job in self._queue.held(container)]
        self._queue.ping(container, held, time.time())
        stops = await self._changes.first(lambda: self._queue.pop_stops(container), HELD_SECONDS)
        reply = api_pb2.ContainerHeartbeatResponse()
        if stops:
            reply.cancel_input_event.input_ids.extend(f"in-{stop}" for stop in stops)
        return reply

    async def _function_get_inputs(self, _: Any, container: str) -> Any:
        # A container with an input in work takes no other: the answer that carried it was lost.
        for lost in self._queue.held(container):
            self._queue.give_back(lost)
        job = await self._changes.first(
            lambda: self._queue.take(container, time.time()), POLL_SECONDS
        )
        reply = api_pb2.FunctionGetInputsResponse()
        if job is not None:
            given = api_pb2.FunctionInput(
                args=base64.b64decode(job.input["args"]), data_format=job.input["format"]
            )
            reply.inputs.add(
                input_id=_input_id(job),
                input=given,
                function_call_id=job.id,
                function_call_invocation_type=api_pb2.FUNCTION_CALL_INVOCATION_TYPE_ASYNC,
                retry_count=job.retries,
            )
        return reply

    async def _function_put_outputs(self, request: Any, container: str) -> None:
        for item in request.outputs:
            job = self._queue.get(item.input_id.removeprefix("in-"))
            if job is None:
                continue
            result = item.result
            if result.status == api_pb2.GenericResult.GENERIC_STATUS_TERMINATED:
                # Sent after a cancel, which has ended the job, and by a container that goes down.
                self._queue.cancel(job, time.time())
                continue
            succeeded = result.status == api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
            output = {
                "data": base64.b64encode(result.data).decode(),
                "format": item.data_format or api_pb2.DATA_FORMAT_CBOR,
            }
            error = None if succeeded else result.exception or "it failed"
            self._queue.finish(container, job, output, error, time.time())
        self._changes.notify()

    # ── deploy ──────────────────────────────────────────────────────────────────────────────────

    async def _app_get_by_deployment_name(self, request: Any, _: str) -> Any:
        self._deploying = Deployed(request.environment_name or "main", request.name)
        return api_pb2.AppGetByDeploymentNameResponse(app_id=self._deploying.app_id)

    async def _environment_get_or_create(self, request: Any, _: str) -> Any:
        reply = api_pb2.EnvironmentGetOrCreateResponse(environment_id="en-main")
        reply.metadata.name = request.deployment_name or "main"
        reply.metadata.settings.image_builder_version = _BUILDER
        return reply

    async def _image_get_or_create(self, request: Any, _: str) -> Any:
        reply = api_pb2.ImageGetOrCreateResponse(image_id=_id("im", str(request.image)))
        reply.result.status = api_pb2.GenericResult.GENERIC_STATUS_SUCCESS
        return reply

    async def _mount_get_or_create(self, request: Any, _: str) -> Any:
        return api_pb2.MountGetOrCreateResponse(mount_id=_id("mo", request.deployment_name))

    async def _secret_get_or_create(self, request: Any, _: str) -> Any:
        return api_pb2.SecretGetOrCreateResponse(secret_id=_id("st", request.deployment_name))

    async def _function_precreate(self, request: Any, _: str) -> Any:
        self._deploying.name = request.function_name
        return api_pb2.FunctionPrecreateResponse(
            function_id=self._deploying.function_id, handle_metadata=_metadata(self._deploying)
        )

    async def _function_create(self, request: Any, _: str) -> Any:
        # One function for each GPU of the list; this machine has none of them.
        ranked = request.function_data.ranked_functions
        self._deploying.function = ranked[0].function if ranked else request.function
        return api_pb2.FunctionCreateResponse(
            function_id=self._deploying.function_id,
            function=self._deploying.function,
            function_data=request.function_data,
            handle_metadata=_metadata(self._deploying),
        )

    async def _app_publish(self, request: Any, _: str) -> Any:
        deployed = self._deployed = self._deploying
        arguments = api_pb2.ContainerArguments(
            task_id="ta-embedded",
            function_id=deployed.function_id,
            app_id=deployed.app_id,
            function_def=deployed.function,
            environment_name=deployed.environment,
        )
        layout = arguments.app_layout
        layout.function_ids[deployed.name] = deployed.function_id
        layout.objects.add(
            object_id=deployed.function_id, function_handle_metadata=_metadata(deployed)
        )
        for dependency in deployed.function.object_dependencies:
            layout.objects.add(object_id=dependency.object_id)
        path = container_arguments(self._config.folder)
        new = path.with_suffix(".new")
        new.write_bytes(arguments.SerializeToString())
        new.replace(path)
        return api_pb2.AppPublishResponse()

    # ── small steps ─────────────────────────────────────────────────────────────────────────────

    def _of(self, function_id: str) -> Deployed:
        if self._deployed is None or function_id != self._deployed.function_id:
            raise GRPCError(Status.NOT_FOUND, f"No function {function_id}")
        return self._deployed

    def _call(self, call_id: str) -> QueuedJob:
        job = self._queue.get(call_id)
        if job is None:
            raise GRPCError(Status.NOT_FOUND, f"No function call {call_id}")
        return job

    async def _expire(self) -> None:
        while True:
            self._queue.expire(time.time())
            self._changes.notify()
            await asyncio.sleep(EXPIRE_SECONDS)


#: The rpcs whose empty answer is enough: the client asks, and nothing follows from it here.
_EMPTY = (
    "AppClientDisconnect",
    "AppGetLayout",
    "AppHeartbeat",
    "ClientHello",
    "ContainerStop",
    "SecretUpdate",
    "TaskResult",
)


async def _nothing(_: Any, __: str) -> None:
    """Answers an rpc with an empty message."""


def _read_deployed(path: Path) -> Deployed | None:
    """Returns what an earlier run of the server deployed, so that a restart loses nothing."""
    if not path.exists():
        return None
    arguments = api_pb2.ContainerArguments.FromString(path.read_bytes())
    function = arguments.function_def
    return Deployed(arguments.environment_name, function.app_name, function.function_name, function)


def _metadata(deployed: Deployed) -> api_pb2.FunctionHandleMetadata:
    return api_pb2.FunctionHandleMetadata(
        function_name=deployed.name,
        function_type=api_pb2.Function.FUNCTION_TYPE_FUNCTION,
        definition_id=f"de-{deployed.function_id}",
        app_id=deployed.app_id,
        max_object_size_bytes=_MOST_BYTES,
        max_async_object_size_bytes=_MOST_BYTES,
        supported_input_formats=_FORMATS,
        supported_output_formats=_FORMATS,
    )


def _id(kind: str, name: str) -> str:
    return f"{kind}-{uuid.uuid5(uuid.NAMESPACE_OID, name).hex}"


def _input_id(job: QueuedJob) -> str:
    return f"in-{job.id}"


async def serve(config: ModalConfig, port: int, deploy: bool) -> None:
    """Serves until it is cancelled; deploys the worker's app first."""
    async with ModalServer(config).serving(port):
        if deploy:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "modal", "deploy", "-m", "gpu_worker.modal_app"),
                env=os.environ | client_environment(port, config.token),
            )
            if await process.wait():
                raise SystemExit("modal deploy failed")
            log.info("deployed")
        await asyncio.Event().wait()


def main() -> None:
    """Runs the server. MODAL_TOKEN_ID and MODAL_TOKEN_SECRET hold the token: `ps` shows none."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    token = os.environ.get("MODAL_TOKEN_ID", ""), os.environ.get("MODAL_TOKEN_SECRET", "")
    if not all(token):
        parser.error("MODAL_TOKEN_ID and MODAL_TOKEN_SECRET are not set")
    structlog.configure(
        processors=[structlog.processors.LogfmtRenderer(key_order=["event"])],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(ModalConfig(token, options.folder), options.port, deploy=True))


if __name__ == "__main__":
    main()
