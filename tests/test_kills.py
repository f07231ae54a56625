"""kill -9 on each part of the stack while a job runs: the job still ends well."""

import pytest

from gpu_worker.media.probe import output_facts
from tests.stack_thread import StackThread, processes_in


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """One stack, killed in parts again and again."""
    folder = tmp_path_factory.mktemp("kills").resolve()
    with StackThread(folder) as stack:
        yield stack
    assert processes_in(folder) == []


@pytest.mark.parametrize("part", ["broker", "endpoint", "store"])
def test_a_killed_part_loses_no_job(stack, big_buck_bunny, tmp_path, part):
    """The part is restarted, the job completes, its file is whole."""
    url = stack.submit(stack.upload(big_buck_bunny))
    stack.until(url, lambda job: job["phase"] == "processing" and job["progress"] > 10)
    before = stack.kill(part)
    job = stack.finished(url, seconds=120)
    assert (job["status"], job["error"]) == ("complete", None)
    facts = output_facts(stack.download(job, tmp_path / "out.mp4"))
    assert (facts.width, facts.height, facts.frames) == (1080, 1920, 132)
    assert stack.stack.pid(part) != before


def test_a_worker_killed_mid_job_is_replaced_by_the_platforms_own_retry(
    stack, big_buck_bunny, tmp_path
):
    """The provider requeues the job under its id; the broker need not begin another attempt; the
    file is whole.
    """
    url = stack.submit(stack.upload(big_buck_bunny))
    running = stack.until(url, lambda job: job["progress"] > 10)
    stack.kill("worker-1")
    job = stack.finished(url, seconds=120)
    assert (job["status"], job["attempt"]) == ("complete", 1)
    assert job["runpod_job_id"] == running["runpod_job_id"]
    assert output_facts(stack.download(job, tmp_path / "out.mp4")).frames == 132


def test_a_job_sent_while_the_endpoint_is_down_goes_when_it_is_back(stack, big_buck_bunny):
    """A submit is accepted whether or not the provider is there."""
    key = stack.upload(big_buck_bunny)
    stack.kill("endpoint")
    url = stack.submit(key, end_time=0.4, output_width=270, output_height=480)
    assert stack.finished(url, seconds=60)["status"] == "complete"
