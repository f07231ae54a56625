"""Below a path of a host: behind a real nginx, with the block of docs/deploy."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner
from websockets.sync.client import connect

from broker.api.routes import ROUTES, routes
from broker.bucket import open_bucket
from broker.cli.main import cli
from broker.client import Client
from broker.embedded.ports import free_ports
from broker.settings import OWN_PATHS
from schemas.keys import object_key
from tests.broker.api.calls import JOB
from tests.broker.api.served import API_KEY, serve
from tests.broker.provider import Worker
from tests.page.screens import choose, export, uploaded

pytestmark = pytest.mark.abuse
ROOT_PATH = "/reelbroker"
GUIDE = Path(__file__).parents[3] / "docs" / "deploy" / "README.md"
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
#: What the guide's block needs around it: one process, without root, in a folder of its own.
AROUND = """
daemon off; master_process off; pid nginx.pid; error_log errors.log;
events {}
http {
access_log off; client_body_temp_path body; proxy_temp_path proxied;
fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
"""
#: All by which a client might claim a prefix, or another host.
FORGED = {
    "X-Forwarded-Prefix": "/evil",
    "X-Forwarded-Path": "/evil",
    "X-Script-Name": "/evil",
    "X-Original-URL": "/evil/api/jobs",
    "X-Forwarded-Host": "evil.example",
    "Forwarded": "host=evil.example;proto=https",
}


@pytest.fixture
def database_url(tmp_path):
    """SQLite: links are the same on every database."""
    return f"sqlite:///{tmp_path}/broker.db"


@pytest.fixture(params=["passed-on", "stripped"])
def behind_nginx(request, settings, provider, tmp_path):
    """A broker below a path; `url` is nginx's address with the path, `origin` without."""
    made = settings(REELBROKER_ROOT_PATH=ROOT_PATH)
    bucket = open_bucket(made)
    bucket.write(object_key(made.user_id, JOB["input_key"]), b"a video")
    (port,) = free_ports(1)
    slash = {"passed-on": "", "stripped": "/"}[request.param]
    with serve(made, provider) as served, nginx(tmp_path / "nginx", served.url + slash, port):
        served.origin = f"http://127.0.0.1:{port}"
        served.direct, served.url = served.url, served.origin + ROOT_PATH
        served.bucket = bucket
        with httpx.Client(base_url=served.origin, headers=served.headers) as served.proxied:
            yield served


@contextlib.contextmanager
def nginx(folder, upstream, port):
    """Runs the guide's block in a folder, for the broker at `upstream`."""
    (block,) = re.findall(r"^```nginx\n(.*?)^```$", GUIDE.read_text(), flags=re.M | re.S)
    for told, here in (
        ("http://127.0.0.1:8000", upstream),
        ("127.0.0.1:8080", f"127.0.0.1:{port}"),
    ):
        assert block.count(told) == 1
        block = block.replace(told, here)
    folder.mkdir()
    (folder / "nginx.conf").write_text(AROUND + block + "}\n")
    assert NGINX, "scripts/test installs nginx"
    process = subprocess.Popen([NGINX, "-p", folder, "-c", "nginx.conf", "-e", "errors.log"])
    try:
        deadline = time.monotonic() + 20
        while not is_listening(port):
            assert process.poll() is None, (folder / "errors.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield
    finally:
        process.terminate()
        process.wait(10)


def is_listening(port):
    with contextlib.closing(socket.socket()) as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def until(http, path, status):
    """Polls a job until it has a status."""
    deadline = time.monotonic() + 30
    while (job := http.get(path).json())["status"] != status:
        assert time.monotonic() < deadline, job
        time.sleep(0.05)
    return job


def test_all_that_an_answer_points_to_is_below_the_path(behind_nginx, provider):
    """Location, Link, urls, complete_url, snapshots of stream and socket: each is followed."""
    http = behind_nginx.proxied
    sent = http.post(f"{ROOT_PATH}/api/jobs", json=JOB)
    assert sent.status_code == 202
    where = sent.headers["location"]
    assert where == f"{ROOT_PATH}/api/jobs/{sent.json()['job_id']}"
    job = until(http, where, "processing")
    with http.stream("GET", job["urls"]["events"]) as stream:
        data = next(line for line in stream.iter_lines() if line.startswith("data: "))
    with connect(
        f"ws{behind_nginx.origin.removeprefix('http')}{job['websocket_url']}",
        additional_headers=behind_nginx.headers,
    ) as line:
        told = json.loads(line.recv())
    assert [json.loads(data[6:])["job"]["urls"], told["job"]["urls"]] == [job["urls"]] * 2
    Worker(behind_nginx.bucket, provider.only()["sent"]).finish()
    job = until(http, where, "complete")
    assert all(url.startswith(f"{where}/") for name, url in job["urls"].items() if name != "self")
    assert http.get(job["urls"]["output"]).status_code == 302
    assert http.post(job["urls"]["cancel"]).json()["code"] == "already_finished"
    assert http.post(job["urls"]["retry"]).json()["code"] == "not_retryable"
    again = http.post(f"{ROOT_PATH}/api/jobs", json=JOB, headers={"Prefer": "wait=1"}).json()
    assert http.post(again["urls"]["cancel"]).json()["urls"]["self"] == again["urls"]["self"]
    listed = http.get(f"{ROOT_PATH}/api/jobs?limit=1")
    older = re.fullmatch(r'<(.*)>; rel="next"', listed.headers["link"])[1]
    assert older.startswith(f"{ROOT_PATH}/api/jobs?")
    both = [listed.json()["jobs"][0], http.get(older).json()["jobs"][0]]
    assert [one["urls"]["self"] for one in both] == [again["urls"]["self"], where]
    ticket = http.post(f"{ROOT_PATH}/api/videos/upload-url", json={"filename": "a.mp4"}).json()
    put = httpx.put(ticket["upload_url"], content=b"a video", headers=ticket["headers"])
    assert put.status_code == 200
    assert http.post(ticket["complete_url"]).json()["bytes"] == len(b"a video")


def test_the_pages_load_all_their_files_below_the_path(behind_nginx):
    """Page and reference, also with a slash too few or too many; the document names the path."""
    with httpx.Client(base_url=behind_nginx.origin, follow_redirects=True) as http:
        for path in ("", "/", "/docs", "/docs/"):
            page = http.get(ROOT_PATH + path)
            assert page.status_code == 200
            assert str(page.url).removeprefix(behind_nginx.url) == {"": "/", "/docs/": "/docs"}.get(
                path, path
            )
            loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="([^"]+)"', page.text)
            assert len(loaded) == 4
            for address in loaded:
                if not address.startswith("data:"):
                    found = http.get(urljoin(str(page.url), address))
                    assert (found.status_code, found.url.path.startswith(ROOT_PATH)) == (200, True)
        assert http.get(f"{ROOT_PATH}/openapi.json").json()["servers"] == [{"url": ROOT_PATH}]
        # nginx's own answer: the rest of the host is not the broker's.
        assert http.get("/api/jobs").status_code == 404


@pytest.mark.parametrize("behind_nginx", ["passed-on"], indirect=True)
def test_no_header_changes_what_anybody_sees(behind_nginx):
    """Forged prefixes and hosts, to the port and through nginx: all links stay as they are."""
    sent = behind_nginx.proxied.post(f"{ROOT_PATH}/api/jobs", json=JOB, headers=FORGED)
    url = sent.headers["location"]
    assert url.startswith(f"{ROOT_PATH}/api/jobs/")
    for base in (behind_nginx.origin, behind_nginx.direct):
        with httpx.Client(base_url=base, headers=behind_nginx.headers) as http:
            for path in ("/", "/docs", "/openapi.json"):
                plain, forged = (http.get(ROOT_PATH + path, headers=sent) for sent in ({}, FORGED))
                assert (plain.status_code, plain.text) == (forged.status_code, forged.text)
            moved = http.get(f"{ROOT_PATH}/docs/", headers=FORGED)
            assert urljoin(base, moved.headers["location"]) == f"{base}{ROOT_PATH}/docs"
            assert "evil" not in moved.headers["location"]
            (listed,) = http.get(f"{ROOT_PATH}/api/jobs", headers=FORGED).json()["jobs"]
            assert listed["urls"]["self"] == url


@pytest.mark.parametrize("behind_nginx", ["passed-on"], indirect=True)
def test_health_checks_go_straight_to_the_port(behind_nginx):
    """With the path and without it; a path that only begins like it is another one."""
    for path, status in (
        ("/healthz", 200),
        (f"{ROOT_PATH}/healthz", 200),
        (f"{ROOT_PATH}s/healthz", 404),
        (f"{ROOT_PATH}{ROOT_PATH}/healthz", 404),
    ):
        assert httpx.get(behind_nginx.direct + path).status_code == status, path


@pytest.mark.parametrize("behind_nginx", ["stripped"], indirect=True)
def test_the_client_and_the_terminal_take_an_address_with_a_path(
    behind_nginx, provider, tmp_path, monkeypatch
):
    """Upload, submit, watch, download and list."""
    video, out = tmp_path / "clip.mp4", tmp_path / "out.mp4"
    video.write_bytes(b"a video")
    with Client(behind_nginx.url, API_KEY) as client:
        job = client.submit({"type": "framing", "input_key": client.upload(video)})
        until(behind_nginx.proxied, job.urls.self, "processing")
        Worker(behind_nginx.bucket, provider.only()["sent"]).finish()
        *_, job = client.watch(job.job_id)
        assert client.download(job, out).read_bytes() == b"a film"
    monkeypatch.setenv("REELBROKER_URL", behind_nginx.url)
    monkeypatch.setenv("REELBROKER_API_KEY", API_KEY)
    listed = CliRunner().invoke(cli, ["jobs", "list", "--json"])
    assert [one["job_id"] for one in json.loads(listed.stdout)] == [job.job_id]


@pytest.fixture
def open_bucket_to(behind_nginx):
    """Lets nginx's page put into the bucket for the length of a test."""
    client, name = behind_nginx.bucket._client, behind_nginx.bucket._name
    before = client.get_bucket_cors(Bucket=name)["CORSRules"]
    behind_nginx.bucket.set_up([behind_nginx.origin])
    yield
    client.put_bucket_cors(Bucket=name, CORSConfiguration={"CORSRules": before})


@pytest.mark.usefixtures("open_bucket_to")
@pytest.mark.parametrize("behind_nginx", ["stripped"], indirect=True)
def test_people_use_the_page_below_the_path(behind_nginx, chromium, clip):
    """Sign in, upload, export, look at list and reference in a browser; no console complains."""
    complaints = []
    page = chromium.new_page()
    page.set_default_timeout(30_000)
    page.on("console", lambda said: complaints.append(said.text) if said.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"{behind_nginx.url}/#key={API_KEY}")
    choose(page, clip)
    uploaded(page)
    page.click("[data-what=curl]")
    assert f"{behind_nginx.url}/api/jobs " in page.locator("#json").input_value()
    job_id = export(page)
    page.wait_for_selector(".line.live")
    page.click("nav >> text=Jobs")
    page.click(f"#job-{job_id}")
    page.wait_for_selector(f".job :text('{job_id}')")
    page.click("nav >> text=API")
    page.wait_for_selector(".opblock-summary-path >> nth=10")
    assert page.locator(".servers select").input_value() == ROOT_PATH
    assert page.url == f"{behind_nginx.url}/docs"
    page.context.close()
    assert complaints == []


@pytest.mark.parametrize(
    ("given", "taken"),
    [("", ""), ("/", ""), ("/reelbroker/", "/reelbroker"), ("/video/export", "/video/export")],
)
def test_a_prefix_is_a_path(settings, given, taken):
    """With or without a slash at its end."""
    assert settings(REELBROKER_ROOT_PATH=given).root_path == taken


@pytest.mark.parametrize(
    "given",
    [
        "reelbroker",
        "//evil.example",
        "/a//b",
        "/..",
        "/a b",
        "/a?b",
        "/a#b",
        "/a%2fb",
        '/"><script>',
        "/api",
        "/docs/x",
    ],
)
def test_what_cannot_be_a_prefix_is_refused(settings, given):
    """Also where the broker could not tell it from a path of its own."""
    with pytest.raises(ValidationError, match="REELBROKER_ROOT_PATH"):
        settings(REELBROKER_ROOT_PATH=given)


def test_a_prefix_cannot_be_any_path_of_the_broker(settings):
    """The settings refuse what any route begins with, and nothing else."""
    paths = [part.path for part in (*ROUTES, *routes(settings()))]
    assert {path.split("/")[1] for path in paths} - {""} == OWN_PATHS
