"""What tests of the API do again and again."""

import asyncio

import pytest

JOB = {"type": "framing", "input_key": "a.mp4"}
#: For what is the same whichever database there is.
on_one_database = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


async def until(client, url, done, seconds=30):
    """Polls a job as a frontend would."""
    async with asyncio.timeout(seconds):
        while not done(job := (await client.get(url)).json()):
            await asyncio.sleep(0.05)
    return job


async def submitted_ids(client):
    """Returns the ids of all jobs."""
    return [job["job_id"] for job in (await client.get("/api/jobs")).json()["jobs"]]
