"""Bodies and queries that are made to cost: each is refused in little text, and others are answered
meanwhile.
"""

import contextlib
import http.client
import json
import threading
import time

import httpx
import pytest

from broker.bucket import open_bucket
from schemas.keys import object_key
from tests.broker.api.calls import JOB, on_one_database
from tests.broker.configured import API_KEY, configured
from tests.broker.process import serving

pytestmark = pytest.mark.abuse
MIB = 2**20
AUTHORIZED = {"Authorization": f"Bearer {API_KEY}"}


def array(item):
    """1 MB of one item again and again."""
    return "[" + ",".join([item] * (1_020_000 // (len(item) + 1))) + "]"


def names(count):
    """An object with so many members, all unknown."""
    return "{" + ",".join(f'"a{number}":1' for number in range(count)) + "}"


def framing(params):
    return f'{{"type":"framing","input_key":"a.mp4","params":{params}}}'


CLIP = '{"crop_keyframes":[' + ",".join(["{}"] * 1650) + "]}"
REGION = '{"keyframes":[' + ",".join(["{}"] * 650) + "]}"
#: What is sent where, with the start of the pointer that is told.
BODIES = {
    "keyframes": (
        "/api/jobs/quote",
        framing(f'{{"crop_keyframes":{array("{}")}}}'),
        "/params/crop_keyframes/0",
    ),
    "segments": ("/api/jobs", framing(f'{{"segments":{array("7")}}}'), "/params/segments/0"),
    "clips": (
        "/api/jobs",
        f'{{"type":"multi_clip","params":{{"clips":[{",".join([CLIP] * 200)}]}}}}',
        "/params/clips/0/crop_keyframes/0",
    ),
    "regions": (
        "/api/jobs/quote",
        f'{{"type":"overlay","input_key":"a","params":{{"regions":[{",".join([REGION] * 500)}]}}}}',
        "/params/highlight_regions/0/keyframes/0",
    ),
    "layers": (
        "/api/jobs",
        f'{{"type":"overlay","input_key":"a","params":{{"text_layers":{array("{}")}}}}}',
        "/params/text_layers/0",
    ),
    "tags": (
        "/api/jobs",
        f'{{"type":"annotate","input_key":"a","params":{{"clips":[{{"tags":{array("1")}}}]}}}}',
        "/params/clips/0",
    ),
    "unknown-params": ("/api/jobs", framing(names(80_000)), ""),
    "unknown-fields": ("/api/jobs", names(80_000), ""),
    "unknown-in-a-keyframe": ("/api/jobs", framing(f'{{"crop_keyframes":[{names(80_000)}]}}'), ""),
    "a-long-name": ("/api/jobs", framing(f'{{"{"aA" * 500_000}":1}}'), "/params/aAaA"),
    "speeds": ("/api/jobs", framing(f'{{"segment_data":{{"segmentSpeeds":{names(80_000)}}}}}'), ""),
    "kinds": (
        "/api/webhooks",
        f'{{"url":"https://a.example","kinds":{array(chr(34) + "a" + chr(34))}}}',
        "/kinds/0",
    ),
    "an-older-start": (
        "/api/export/framing/start",
        f'{{"input_key":"a.mp4","crop_keyframes":{array("{}")}}}',
        "/params/crop_keyframes/0",
    ),
}


@pytest.fixture(scope="module")
def broker(object_store, tmp_path_factory):
    """`reelbroker serve` in a process of its own, with a video in the bucket."""
    folder = tmp_path_factory.mktemp("reading")
    made = configured(object_store, REELBROKER_DATABASE_URL=f"sqlite:///{folder}/broker.db")
    open_bucket(made).write(object_key(made.user_id, JOB["input_key"]), b"a video")
    with serving(made, folder) as broker:
        yield broker


@pytest.fixture
def api(broker):
    """A client with the key."""
    with httpx.Client(base_url=broker.url, headers=AUTHORIZED, timeout=60) as client:
        yield client


@contextlib.contextmanager
def health(broker):
    """Asks for /healthz all the time; hands out the list of how long each answer took."""
    over, took = threading.Event(), []

    def ask():
        line = http.client.HTTPConnection(*broker.address, timeout=60)
        while not over.wait(0.01):
            started = time.monotonic()
            line.request("GET", "/healthz")
            assert line.getresponse().read() == b'{"status":"ok"}'
            took.append(time.monotonic() - started)
        line.close()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield took
    finally:
        over.set()
        asking.join()


@pytest.mark.parametrize("name", BODIES)
def test_a_body_of_errors_is_refused_in_little_text(api, name):
    """By the first item that is wrong, or for the number of members; no name comes back at
    length.
    """
    path, body, pointer = BODIES[name]
    reply = api.post(path, content=body)
    told = reply.json()
    assert (reply.status_code, told["errors"][0]["pointer"].startswith(pointer)) == (422, True)
    assert len(reply.content) < 3000


def test_many_such_bodies_at_once_hold_nobody_up(broker, api, measured):
    """Eight clients send them as fast as they can: /healthz answers within 0.5 s, and memory grows
    by less than 200 MB.
    """
    before = broker.memory()

    def attack():
        with httpx.Client(base_url=broker.url, headers=AUTHORIZED, timeout=60) as client:
            for path, body, _ in BODIES.values():
                assert client.post(path, content=body.encode()).status_code == 422

    with health(broker) as took:
        attackers = [threading.Thread(target=attack) for _ in range(8)]
        for attacker in attackers:
            attacker.start()
        for attacker in attackers:
            attacker.join()
    grown = broker.most_memory() - before
    measured(
        f"{8 * len(BODIES)} bodies of a million errors: /healthz {max(took):.2f} s at most, "
        f"+{grown / MIB:.0f} MB"
    )
    # The machine has other tests to run: one answer in twenty may take longer.
    assert sorted(took)[len(took) * 19 // 20] < 0.5
    assert max(took) < 3
    assert grown < 200 * MIB


def test_a_hundred_errors_are_told_and_how_many_more_there_are(api):
    """Of an object that may have so many members; the sentence names ten."""
    told = api.post("/api/jobs", content=framing(names(900))).json()
    assert len(told["errors"]) == 101
    assert told["errors"][0]["pointer"] == "/params/a0"
    assert told["errors"][-1] == {"pointer": "", "detail": "and 800 more errors"}
    assert told["detail"].endswith("; and 91 more")


def test_a_large_body_that_is_right_is_taken(api):
    """As long as each object has no more members than one of ours may have."""
    keyframes = [{"time": time, "x": 0, "y": 0, "width": 9, "height": 16} for time in range(10_000)]
    body = JOB | {
        "params": {"crop_keyframes": keyframes},
        "metadata": {str(n): "a" * 9000 for n in range(32)},
    }
    assert len(json.dumps(body)) > 800_000
    assert api.post("/api/jobs", json=body).status_code == 202


@pytest.mark.parametrize(
    "path", ["/api/jobs", "/api/jobs/none/events", "/api/storage/presigned-url"]
)
def test_a_query_of_many_names_is_refused(broker, api, path):
    """Ten thousand, as many as fit into a request's line: at once, and in little text."""
    query = "&".join(f"a{number}" for number in range(10_000))
    with health(broker) as took:
        reply = api.get(f"{path}?{query}")
        several = api.get(f"{path}?{'&'.join(['status=error'] * 4000)}")
    assert (reply.status_code, reply.json()["errors"][0]["detail"]) == (
        422,
        "the query has more than 100 names",
    )
    assert several.status_code in (200, 404, 422)
    assert len(several.content) < 3000
    assert max(took) < 1


@on_one_database
async def test_a_form_of_long_headers_and_fields_is_refused(client):
    """What stands before a part has a limit of its own, and so has JSON within a field."""
    begin = "--b\r\nContent-Disposition: form-data; name="
    for content in (
        f'{begin}"{"a" * 500_000}"\r\n\r\nx\r\n--b--',
        f'{begin}"keyframes_json"\r\n\r\n{array("{}")}\r\n{begin}"video"\r\n\r\nx\r\n--b--',
        f'{begin}"keyframes_json"\r\n\r\n{"[" * 500_000}\r\n{begin}"video"\r\n\r\nx\r\n--b--',
    ):
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        reply = await client.post("/api/export/upscale", content=content, headers=headers)
        assert reply.status_code == 422
        assert len(reply.content) < 3000
