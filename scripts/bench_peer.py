"""The peer of scripts/bench-broker: a plain broker in FastAPI and sqlite3.

bench_broker.py runs it. It is written as source document 001 describes it: it submits to RunPod
within the request, asks RunPod within each poll, opens the database for each request and an HTTP
client for each call, as written there.
"""

import contextlib
import json
import os
import sqlite3
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

ENDPOINT, DATABASE = os.environ["RUNPOD_ENDPOINT_URL"], os.environ["PEER_DATABASE"]
HEADERS = {"Authorization": f"Bearer {os.environ['RUNPOD_API_KEY']}"}
app = FastAPI()


class ExportRequest(BaseModel):
    project_id: int
    input_key: str
    params: dict[str, Any] = {}


@contextlib.contextmanager
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(DATABASE)
    connection.row_factory = sqlite3.Row
    try:
        yield connection
    finally:
        connection.close()


with database() as first:
    first.execute(
        "CREATE TABLE IF NOT EXISTS export_jobs (id TEXT PRIMARY KEY, project_id INTEGER, "
        "type TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'pending', progress INTEGER DEFAULT 0, "
        "input_key TEXT, output_key TEXT, runpod_job_id TEXT, error TEXT, params TEXT, "
        "created_at TEXT DEFAULT (datetime('now')), completed_at TEXT)"
    )
    first.commit()


@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}


@app.post("/api/export/framing/start")
async def start(request: ExportRequest) -> dict[str, str]:
    job_id = str(uuid.uuid4())
    output_key = f"final_videos/framing_{job_id}.mp4"
    with database() as connection:
        connection.execute(
            "INSERT INTO export_jobs (id, project_id, type, status, input_key, output_key, params) "
            "VALUES (?, ?, 'framing', 'pending', ?, ?, ?)",
            (job_id, request.project_id, request.input_key, output_key, json.dumps(request.params)),
        )
        connection.commit()
    job = {
        "job_id": job_id,
        "user_id": "bench",
        "type": "framing",
        "input_key": request.input_key,
        "output_key": output_key,
        "params": request.params,
    }
    async with httpx.AsyncClient() as client:
        reply = await client.post(
            f"{ENDPOINT}/run", headers=HEADERS, json={"input": job}, timeout=30.0
        )
        reply.raise_for_status()
    with database() as connection:
        sent = (reply.json()["id"], job_id)
        connection.execute(
            "UPDATE export_jobs SET runpod_job_id = ?, status = 'processing' WHERE id = ?", sent
        )
        connection.commit()
    return {"job_id": job_id, "status": "processing"}


@app.get("/api/export/framing/status/{job_id}")
async def status(job_id: str) -> dict[str, Any]:
    with database() as connection:
        job = connection.execute("SELECT * FROM export_jobs WHERE id = ?", (job_id,)).fetchone()
        if job is None:
            raise HTTPException(404, "Job not found")
        if job["status"] == "processing" and job["runpod_job_id"]:
            async with httpx.AsyncClient() as client:
                url = f"{ENDPOINT}/status/{job['runpod_job_id']}"
                reply = (await client.get(url, headers=HEADERS, timeout=10.0)).json()
            if reply["status"] == "COMPLETED":
                done = (
                    "UPDATE export_jobs SET status = 'complete', completed_at = datetime('now') "
                    "WHERE id = ?"
                )
                connection.execute(done, (job_id,))
                connection.commit()
                return {"job_id": job_id, "status": "complete", "output_key": job["output_key"]}
        return {
            "job_id": job_id,
            "status": job["status"],
            "progress": job["progress"],
            "output_key": job["output_key"] if job["status"] == "complete" else None,
            "error": job["error"],
        }
