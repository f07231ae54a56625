"""The operator's commands on a real database and bucket. No provider listens."""

import json

import pytest
import structlog
from typer.testing import CliRunner

from broker.bucket import open_bucket
from broker.cli.main import cli
from broker.clock import now_ms
from broker.embedded.endpoint import WORKER_VARIABLES
from broker.jobs.model import Attempt, AttemptState, EventKind, JobChange
from broker.store.engine import open_engine
from broker.store.jobs import JobStore
from schemas.jobs import JobStatus
from schemas.keys import object_key
from tests.broker.api.served import serve
from tests.broker.provider import Provider, Worker


class Desk:
    """A broker that is not running, its database, and a terminal."""

    def __init__(self, settings, make_job):
        self.settings, self.make_job = settings, make_job
        self.bucket = open_bucket(settings)
        self.store = JobStore(open_engine(settings.database_url))

    def submitted(self, token="0" * 32, **attempt):
        """Returns a job that the provider has accepted."""
        job = self.make_job(user_id=self.settings.user_id, created_at=now_ms(), due_at=now_ms())
        self.bucket.write(object_key(job.user_id, job.input_key), b"x")
        self.store.add(job)
        fields = {
            "token": token,
            "job_id": job.id,
            "number": 1,
            "state": AttemptState.SUBMITTED,
            "provider": "runpod",
            "target": "http://127.0.0.1:9/v2/e",
            "provider_job_id": "rp-1",
            "created_at": now_ms(),
            "submitted_at": now_ms() - 60_000,
        }
        changes = {"attempt": 1, "status": JobStatus.PROCESSING, "provider_job_id": "rp-1"}
        return self.store.transition(
            job, EventKind.SUBMITTED, JobChange.model_validate(changes), Attempt(**fields | attempt)
        )

    def worker(self, job, token="0" * 32):
        sent = {"input": {"job_id": job.id, "user_id": job.user_id, "attempt_token": token}}
        return Worker(self.bucket, sent)

    def types(self, *words, code=0):
        """Runs a command and returns what it printed."""
        result = CliRunner().invoke(cli, words)
        assert result.exit_code == code, result.output
        return result.output


@pytest.fixture
def desk(settings, make_job, monkeypatch):
    """Settings come from the environment, as an operator's do."""
    made = settings()
    for name, field in type(made).model_fields.items():
        value = getattr(made, name)
        if value not in (None, ()):
            text = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
            monkeypatch.setenv(str(field.validation_alias), text)
    desk = Desk(made, make_job)
    yield desk
    desk.store.close()
    # The commands log to a terminal that is gone.
    structlog.reset_defaults()


def test_jobs_show_works_beside_a_running_broker(desk):
    """`jobs show` prints fields, attempts and events, as text and JSON, and names a missing job."""
    job = desk.submitted()
    printed = desk.types("jobs", "show", job.id)
    assert all(word in printed for word in (job.id, "rp-1", "accepted", "submitted"))
    story = json.loads(desk.types("jobs", "show", job.id, "--json"))
    assert [event["kind"] for event in story["events"]] == ["accepted", "submitted"]
    assert (story["attempts"][0]["runpod_job_id"], story["job"]["status"]) == ("rp-1", "processing")
    assert "There is no job" in desk.types("jobs", "show", "nobody", code=1)


def test_orphans_are_listed_with_what_they_cost_at_most(desk, monkeypatch):
    """Seconds since the submit, by the price of the settings."""
    assert "none" in desk.types("jobs", "orphans")
    desk.submitted(state=AttemptState.SUPERSEDED, orphan_due_at=1, error_code="worker_lost")
    monkeypatch.setenv("REELBROKER_GPU_PRICES", '{"*": 0.5}')
    (orphan,) = json.loads(desk.types("jobs", "orphans", "--json"))
    assert (orphan["runpod_job_id"], orphan["why"]) == ("rp-1", "worker_lost")
    assert 60 <= orphan["seconds_at_most"] < 90
    assert orphan["usd_at_most"] == pytest.approx(orphan["seconds_at_most"] * 0.5, rel=0.05)


def test_reconcile_dry_run_lists_changes_and_makes_none(desk):
    """Beside a running broker: an unread result, an unsent job, and a job out of sight."""
    done, unseen = desk.submitted(), desk.submitted("1" * 32)
    new = desk.store.add(desk.make_job(user_id=desk.settings.user_id, created_at=now_ms()))
    desk.worker(done).finish()
    before = [desk.store.load(job.id) for job in (done, unseen, new)]
    rows = {row["job"]: row for row in json.loads(desk.types("reconcile", "--dry-run", "--json"))}
    assert rows[done.id]["would be"] == "complete, attempt 1"
    assert rows[new.id]["would be"] == "sent, attempt 1"
    assert rows[unseen.id]["would be"] == "processing, attempt 1"
    assert "does not answer" in rows[unseen.id]["message"]
    assert [desk.store.load(job.id) for job in (done, unseen, new)] == before
    assert desk.bucket.size(desk.worker(unseen, "1" * 32).key("stop.json")) is None


def test_reconcile_moves_jobs_when_no_broker_runs(desk):
    """Once each."""
    job = desk.submitted()
    desk.worker(job).finish()
    if desk.settings.database_url.startswith("sqlite"):
        assert "in use" in desk.types("reconcile", code=1)
    desk.store.close()
    assert "complete" in desk.types("reconcile")
    desk.store = JobStore(open_engine(desk.settings.database_url))
    assert desk.store.find(job.id).status is JobStatus.COMPLETE


def test_after_a_restore_results_are_found_that_the_copy_does_not_know(desk, tmp_path):
    """The copy is from before the attempt; the bucket has its result."""
    if not desk.settings.database_url.startswith("sqlite"):
        assert "pg_dump" in desk.types("backup", str(tmp_path / "copy.db"), code=1)
        return
    job = desk.store.add(desk.make_job(user_id=desk.settings.user_id, created_at=now_ms()))
    assert "checked" in desk.types("backup", str(tmp_path / "copy.db"))
    assert "there already" in desk.types("backup", str(tmp_path / "copy.db"), code=1)
    desk.worker(job, "7" * 32).finish()
    desk.store.close()
    assert "complete" in desk.types("restore", str(tmp_path / "copy.db"))
    desk.store = JobStore(open_engine(desk.settings.database_url))
    found = desk.store.find(job.id)
    assert (found.status, found.evidence_source) == (JobStatus.COMPLETE, "bucket:result.json")


def test_a_sweep_lists_before_it_removes(desk, monkeypatch):
    """The same objects; and removes only where no broker runs."""
    job = desk.submitted()
    document = desk.worker(job).start("rp-1") or desk.worker(job).key("started.json")
    desk.store.transition(
        job,
        EventKind.ERROR,
        JobChange.model_validate(
            {"status": "error", "error": "x", "error_code": "internal", "completed_at": 1}
        ),
    )
    assert json.loads(desk.types("sweep", "--dry-run", "--json")) == []
    monkeypatch.setenv("REELBROKER_KEEP_DOCUMENTS_DAYS", "0.000000001")
    assert [row["key"] for row in json.loads(desk.types("sweep", "--dry-run", "--json"))] == [
        document
    ]
    assert desk.bucket.size(document) is not None
    desk.store.close()
    assert "1 objects removed" in desk.types("sweep")
    assert desk.bucket.size(document) is None


def test_a_drain_needs_a_running_broker(desk):
    """Only the broker sends jobs."""
    assert "did not do it" in desk.types("drain", code=1)


def test_a_missing_setting_is_named(desk, monkeypatch):
    """Exit code 2."""
    monkeypatch.delenv("R2_ENDPOINT")
    desk.types("jobs", "orphans", code=2)


def test_keys_are_made_by_the_running_broker(desk, monkeypatch):
    """The broker shows a key once, lists keys without their secrets, and revokes keys."""
    desk.store.close()
    with serve(desk.settings, Provider()) as served:
        monkeypatch.setenv("REELBROKER_PORT", served.url.rpartition(":")[2])
        made = json.loads(desk.types("keys", "create", "alice", "--name", "web", "--json"))[0]
        assert "cannot be shown again" in desk.types("keys", "create", "root", "--admin")
        listed = json.loads(desk.types("keys", "list", "--json"))
        assert [(key["user_id"], key["name"], key["admin"]) for key in listed] == [
            ("alice", "web", False),
            ("root", "", True),
        ]
        assert made["key"] not in json.dumps(listed)
        bearer = {"Authorization": f"Bearer {made['key']}"}
        assert served.client.get("/api/jobs", headers=bearer).status_code == 200
        desk.types("keys", "revoke", made["id"])
        assert served.client.get("/api/jobs", headers=bearer).status_code == 401
        assert "There is no key none" in desk.types("keys", "revoke", "none", code=1)


def test_the_bucket_gets_its_rules_and_keeps_its_others(desk, monkeypatch):
    """Pages of the settings' origins may put and get. A second setup adds no second rule."""
    monkeypatch.setenv("REELBROKER_CORS_ORIGINS", "https://app.example")
    client, name = desk.bucket._client, desk.settings.r2_bucket_name
    before = client.get_bucket_cors(Bucket=name)["CORSRules"]
    for _ in range(2):
        assert "https://app.example" in desk.types("storage", "setup")
    rules = client.get_bucket_cors(Bucket=name)["CORSRules"]
    assert [rule["AllowedOrigins"] for rule in rules] == [
        *(rule["AllowedOrigins"] for rule in before),
        [
            "https://app.example",
            f"http://127.0.0.1:{desk.settings.port}",
            f"http://localhost:{desk.settings.port}",
        ],
    ]
    (cleaning,) = client.get_bucket_lifecycle_configuration(Bucket=name)["Rules"]
    assert cleaning["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 1}
    client.put_bucket_cors(Bucket=name, CORSConfiguration={"CORSRules": before})


def test_a_worker_needs_an_environment_or_a_stack(monkeypatch, tmp_path):
    """The command names missing settings. Without a queue, the SDK runs a test job."""
    for name in WORKER_VARIABLES:
        monkeypatch.setenv(name, "set")
    monkeypatch.delenv("R2_BUCKET_NAME")
    monkeypatch.setenv("RUNPOD_WEBHOOK_GET_JOB", "")
    result = CliRunner().invoke(cli, ["worker"])
    missing = "not in the environment: R2_BUCKET_NAME, RUNPOD_WEBHOOK_GET_JOB"
    hint = "(--folder joins a stack on this machine)"
    assert (result.exit_code, result.stderr.splitlines()) == (2, [f"{missing} {hint}"])
    (tmp_path / "ended").mkdir()
    (tmp_path / "ended" / "stack.json").write_text("{}")
    for folder in ("none", "ended"):
        result = CliRunner().invoke(cli, ["worker", "--folder", str(tmp_path / folder)])
        assert (result.exit_code, "no stack is running" in result.output) == (1, True)
    structlog.reset_defaults()
