"""One execution under a fence, as any provider's entry runs it."""

import asyncio
import threading

from gpu_worker.runner import Failed, Runner
from tests.gpu_worker.footage import make

SMALL = {"output_width": 64, "output_height": 96}


def job_of(user_id, **overrides):
    """A job's input as a console sends it."""
    fields = {"job_id": "j1", "user_id": user_id, "type": "framing", "input_key": "in.mp4"}
    return fields | {"output_key": "out.mp4", "params": SMALL} | overrides


def test_a_synchronous_entry_runs_a_job_in_a_loop_of_its_own(
    settings, bucket, objects, user_id, tmp_path
):
    """Also in a thread, where Python sets no signal handlers; the same runner takes the next
    job.
    """
    source = make(tmp_path / "a.mp4", "-f", "lavfi", "-i", "testsrc2=s=320x240:r=25:d=0.4")
    objects.put(f"{user_id}/in.mp4", source.read_bytes())
    runner = Runner(settings(), bucket, cold_start_seconds=1.5)
    sent, results = [], []

    async def send(progress):
        sent.append(progress.progress)

    def entry():
        calls = ("call-1", "call-2")
        results.extend(asyncio.run(runner.run(job_of(user_id), name, send)) for name in calls)

    thread = threading.Thread(target=entry)
    thread.start()
    thread.join()
    assert [result.provider_job_id for result in results] == ["call-1", "call-2"]
    assert [result.timings.cold_start_seconds for result in results] == [1.5, 0.0]
    assert sent


async def test_a_failure_is_a_value(settings, bucket, user_id):
    """An error of the job raises nothing in the provider's entry."""

    async def send(progress):
        pass

    outcome = await Runner(settings(), bucket).run(job_of(user_id), "call-1", send)
    assert isinstance(outcome, Failed)
    assert outcome.sentence == "The video to export is not in the bucket."
    assert (outcome.failure.error_code, outcome.failure.retryable) == ("source_not_found", False)
