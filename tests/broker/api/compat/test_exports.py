"""The clients of the source documents, written again by what they do, against the broker as it
is.
"""

import asyncio
import json
import uuid

import boto3
import httpx
import pytest
import websockets
from botocore.config import Config

from broker.services import uploads
from tests.broker.api.calls import JOB, on_one_database, submitted_ids, until
from tests.broker.api.served import API_KEY
from tests.broker.provider import Worker

REGION = {
    "start_frame": 0,
    "end_frame": 30,
    "x": 100.0,
    "y": 80.0,
    "radius_x": 20.0,
    "radius_y": 30.0,
}


class Workers:
    """As document 004's client: a new connection for each call, three calls, plain JSON."""

    def __init__(self, url):
        self.url, self.headers = (
            url,
            {"Content-Type": "application/json", "Authorization": f"Bearer {API_KEY}"},
        )

    async def _call(self, method, path, body=None):
        async with httpx.AsyncClient() as client:
            reply = await client.request(
                method, self.url + path, headers=self.headers, json=body, timeout=30.0
            )
            reply.raise_for_status()
            return reply.json()

    async def create_job(self, project_id, job_type, input_video_key, params):
        body = {
            "project_id": project_id,
            "type": job_type,
            "input_video_key": input_video_key,
            "params": params,
        }
        return await self._call("POST", "/api/jobs", body)

    async def get_job(self, job_id):
        return await self._call("GET", f"/api/jobs/{job_id}")

    async def get_upload_url(self, filename, job_id=None):
        body = {"filename": filename, "content_type": "video/mp4", "job_id": job_id}
        return await self._call("POST", "/api/videos/upload-url", body)


@on_one_database
async def test_the_workers_client_and_its_bucket_client(
    served, provider, bucket, object_store, settings, tmp_path
):
    """Upload by boto3 as it comes, create, poll once a second as the socket proxy does, until a
    status that it knows.
    """
    workers = Workers(served.url)
    plain = boto3.client(
        "s3",
        endpoint_url=object_store.url,
        aws_access_key_id=object_store.access_key,
        aws_secret_access_key=object_store.secret_key,
        config=Config(signature_version="s3v4"),
        region_name="auto",
    )
    key, path = f"input/{uuid.uuid4()}/working_video.mp4", tmp_path / "a.mp4"
    path.write_bytes(b"film" * 1000)
    plain.upload_file(
        str(path),
        object_store.bucket,
        f"{settings().user_id}/{key}",
        ExtraArgs={"ContentType": "video/mp4"},
    )
    params = {
        "highlight_regions": [REGION | {"opacity": 1.0, "color": "#ffffff"}],
        "effect_type": "blur",
        "crop_keyframes": None,
        "output_width": 1080,
        "output_height": 1920,
    }
    made = await workers.create_job(7, "overlay", key, params)
    assert made["status"] == "pending"
    assert made["websocket_url"] == f"/api/jobs/{made['job_id']}/ws"
    seen = []
    while not seen or seen[-1]["status"] not in ("complete", "error"):
        seen.append(await workers.get_job(made["job_id"]))
        if (
            seen[-1]["status"] == "processing"
            and not Worker(bucket, provider.only()["sent"]).told_to_stop()
        ):
            Worker(bucket, provider.only()["sent"]).finish()
        await asyncio.sleep(0.1)
    assert seen[-1]["status"] == "complete"
    framing = {
        "clip_index": 2,
        "crop_keyframes": [{"frame": 0, "x": 0, "y": 0, "width": 90, "height": 160}],
    }
    framed = await workers.create_job(
        7, "framing", key, framing | {"start_time": 0.5, "end_time": 2.0}
    )
    assert framed["params"]["crop_keyframes"][0]["frame"] == 0
    ticket = await workers.get_upload_url("clip.mp4")
    async with httpx.AsyncClient() as http:
        put = await http.put(
            ticket["upload_url"], content=b"film", headers={"Content-Type": "video/mp4"}
        )
    assert (put.status_code, ticket["video_key"].endswith("/clip.mp4")) == (200, True)


async def test_start_and_poll_as_the_first_backend(client, provider, bucket):
    """`/start`, then `/status` until there is an end: five fields, four statuses."""
    started = await client.post(
        "/api/export/overlay/start",
        json={
            "input_key": "a.mp4",
            "project_id": 3,
            "highlight_regions": [REGION],
            "effect_type": "blur",
        },
    )
    assert (started.status_code, started.json()["status"]) == (200, "processing")
    url = f"/api/export/overlay/status/{started.json()['job_id']}"
    await until(client, url, lambda job: job["status"] == "processing")
    key = Worker(bucket, provider.only()["sent"]).finish()
    job = await until(client, url, lambda job: job["status"] == "complete")
    assert job == {
        "job_id": started.json()["job_id"],
        "status": "complete",
        "progress": 100,
        "output_key": key,
        "error": None,
    }
    (listed,) = (await client.get("/api/export/jobs")).json()["jobs"]
    assert (listed["type"], listed["project_id"], listed["input_key"]) == ("overlay", 3, "a.mp4")
    link = (await client.get("/api/storage/presigned-url", params={"key": key})).json()
    async with httpx.AsyncClient() as http:
        assert (await http.get(link["url"])).content == b"a film"
    assert (
        await client.get("/api/storage/presigned-url", params={"key": "none.mp4"})
    ).status_code == 404


async def test_a_start_by_project_takes_what_the_project_made_last(client, provider, bucket):
    """The newest finished framing is the overlay's video; a project without one is told so."""
    none = await client.post(
        "/api/export/overlay/start", json={"project_id": 5, "highlight_regions": []}
    )
    assert (none.status_code, "no working video" in none.json()["detail"]) == (400, True)
    url = (await client.post("/api/jobs", json=JOB | {"project_id": 5})).headers["location"]
    await until(client, url, lambda job: job["status"] == "processing")
    key = Worker(bucket, provider.only()["sent"]).finish()
    await until(client, url, lambda job: job["status"] == "complete")
    body = {"project_id": 5, "highlight_regions": [REGION], "effect_type": "dark_overlay"}
    started = (await client.post("/api/export/overlay/start", json=body)).json()
    assert (await client.get(f"/api/jobs/{started['job_id']}")).json()["input_key"] == key


async def test_a_page_that_comes_back_finds_its_exports(client, provider, bucket):
    """Active ones, what each is doing, and a cancel that reads as an error; the second time there
    is nothing to cancel.
    """
    url = (await client.post("/api/jobs", json=JOB | {"project_id": 9})).headers["location"]
    job_id = url.rpartition("/")[2]
    (active,) = (await client.get("/api/exports/active")).json()["exports"]
    assert (active["job_id"], active["project_id"]) == (job_id, 9)
    for word, expected in (("remote-status", "running"), ("modal-status", "not_modal")):
        assert (await client.get(f"/api/exports/{job_id}/{word}")).json()["status"] == expected
    assert (await client.delete(f"/api/exports/{job_id}")).json() == {
        "message": "Export cancelled",
        "modal_cancelled": False,
    }
    told = await until(
        client, f"/api/exports/{job_id}/remote-status", lambda told: told["status"] == "error"
    )
    assert told["error"] == "Cancelled by user"
    status = (await client.get(f"/api/export/framing/status/{job_id}")).json()
    assert (status["status"], status["error"]) == ("error", "Cancelled by user")
    assert (await client.get("/api/exports/active")).json() == {"exports": []}
    failed = (await client.post("/api/jobs", json=JOB | {"input_key": "none.mp4"})).headers[
        "location"
    ]
    await until(client, failed, lambda job: job["status"] == "error")
    over = await client.delete(f"/api/exports/{failed.rpartition('/')[2]}")
    assert (over.status_code, over.json()["errors"][0]["detail"]) == (
        400,
        "The job has ended already: error.",
    )


def form(**fields):
    """The editor's form: strings, and the file last."""
    plain = {
        "keyframes_json": json.dumps([{"time": 0, "x": 0, "y": 0, "width": 90, "height": 160}]),
        "export_mode": "FAST",
        "target_fps": "30",
    }
    return {name: (None, value) for name, value in (plain | fields).items()}


async def test_a_form_with_a_video_becomes_a_job(client, provider, bucket, settings):
    """The file is in the bucket under a temporary key, and goes when the job is complete; sent
    twice it is one job.
    """
    film = b"film" * 50_000
    fields = form(
        export_id="export_1700_abc",
        project_id="4",
        target_width="540",
        target_height="960",
        include_audio="false",
        enable_diffusion_sr="false",
    )
    for order in (
        fields | {"video": ("a.mp4", film, "video/mp4")},
        {"video": ("a.mp4", film, "video/mp4")} | fields,
    ):
        reply = await client.post("/api/export/upscale", files=order)
        assert (reply.status_code, reply.json()["export_id"]) == (202, "export_1700_abc")
    (job_id,) = await submitted_ids(client)
    job = await until(client, f"/api/jobs/{job_id}", lambda job: job["status"] == "processing")
    assert (
        job["type"],
        job["project_id"],
        job["params"]["output_width"],
        job["params"]["include_audio"],
    ) == ("upscale", 4, 540, False)
    folder = f"{settings().user_id}/temp/"
    (kept,) = bucket.listed(folder)
    assert (kept.key.endswith(job["input_key"]), kept.bytes) == (True, len(film))
    assert (await client.get("/api/exports/export_1700_abc/remote-status")).json()[
        "status"
    ] == "running"
    Worker(bucket, provider.only()["sent"]).finish()
    await until(client, f"/api/jobs/{job_id}", lambda job: job["status"] == "complete")
    async with asyncio.timeout(5):
        while list(bucket.listed(folder)):
            await asyncio.sleep(0.05)


@on_one_database
@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        pytest.param(form(target_fps="fast"), "/target_fps", id="not-a-number"),
        pytest.param(form(keyframes_json="[{"), "/keyframes_json", id="broken-json"),
        pytest.param(
            form(keyframes_json='[{"time": 0}]'), "/params/crop_keyframes/0/x", id="broken-keyframe"
        ),
        pytest.param(form(colour="red"), "/colour", id="unknown-field"),
        pytest.param(form(export_id="../x"), "/export_id", id="bad-id"),
    ],
)
async def test_a_wrong_form_is_refused_and_its_file_is_gone(
    client, bucket, settings, fields, pointer
):
    """422 by the field's name; nothing is stored."""
    reply = await client.post(
        "/api/export/upscale", files={"video": ("a.mp4", b"film", "video/mp4")} | fields
    )
    assert (reply.status_code, reply.json()["errors"][0]["pointer"]) == (422, pointer)
    assert list(bucket.listed(f"{settings().user_id}/temp/")) == []
    assert await submitted_ids(client) == []


@on_one_database
async def test_a_broken_form_is_refused(client, bucket, settings):
    """No form, no boundary, no video, an empty one, cut off in the middle of the file."""
    head = b'--b\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
    for content, kind, status in [
        (b"{}", "application/json", 415),
        (b"", "multipart/form-data", 415),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 422),
        (head + b"\r\n--b--\r\n", "multipart/form-data; boundary=b", 422),
        (head + b"film" * 100_000, "multipart/form-data; boundary=b", 422),
        (b"film" * 100, "multipart/form-data; boundary=b", 422),
    ]:
        reply = await client.post(
            "/api/export/upscale", content=content, headers={"Content-Type": kind}
        )
        assert reply.status_code == status, content[:20]
    assert list(bucket.listed(f"{settings().user_id}/temp/")) == []


@on_one_database
async def test_a_file_goes_to_the_bucket_as_it_arrives(settings, running, provider, monkeypatch):
    """In parts, none of them held longer than it takes to send it on; over the limit it is cut
    off.
    """
    monkeypatch.setattr(uploads, "PART_BYTES", 5 * 2**20)
    most = 0
    put = uploads.IncomingFile.write

    async def watched(self, data):
        nonlocal most
        await put(self, data)
        most = max(most, len(self._part))

    monkeypatch.setattr(uploads.IncomingFile, "write", watched)

    async def body(size):
        yield b'--b\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
        for _ in range(size // 65_536):
            yield b"x" * 65_536
        yield b"\r\n--b--\r\n"

    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    async with running(settings(REELBROKER_MAX_UPLOAD_BYTES=str(20 * 2**20)), provider) as client:
        good = await client.post("/api/export/upscale", content=body(16 * 2**20), headers=kind)
        assert good.status_code == 202
        assert most <= 5 * 2**20 + 65_536
        over = await client.post("/api/export/upscale", content=body(40 * 2**20), headers=kind)
        assert (over.status_code, over.json()["code"]) == (413, "body_too_large")


@on_one_database
async def test_the_editors_socket(served, provider, bucket):
    """Connected before the job is sent, by an id of its own; pings; the editor's words, camelCase,
    to the end.
    """
    export_id = "export_1700_xyz"
    headers = {"Authorization": f"Bearer {API_KEY}"}
    async with (
        served.async_client() as client,
        websockets.connect(
            f"{served.ws}/ws/export/{export_id}", additional_headers=headers
        ) as socket,
    ):
        await socket.send("ping")
        assert await socket.recv() == "pong"
        files = {"video": ("a.mp4", b"film", "video/mp4")} | form(
            export_id=export_id, project_id="4"
        )
        assert (await client.post("/api/export/upscale", files=files)).status_code == 202
        told = []
        while not told or not told[-1]["done"]:
            told.append(json.loads(await asyncio.wait_for(socket.recv(), 10)))
            if told[-1]["phase"] == "init" and provider.jobs and "X" not in provider.only():
                provider.only()["X"] = Worker(bucket, provider.only()["sent"]).finish()
        await asyncio.wait_for(socket.wait_closed(), 5)
    assert set(told[-1]) >= {
        "current",
        "total",
        "phase",
        "message",
        "done",
        "progress",
        "status",
        "type",
        "projectId",
        "error",
        "outputFilename",
    }
    assert (told[0]["status"], told[-1]["status"], told[-1]["phase"], told[-1]["progress"]) == (
        "processing",
        "complete",
        "complete",
        100,
    )
    assert told[-1]["outputFilename"].endswith(".mp4")
