"""The page as people use it, in Chromium, against the whole embedded stack."""

import functools
import hashlib
import io
import json
import random
import shlex
import struct
from http.server import SimpleHTTPRequestHandler

import httpx
import numpy as np
import pytest
from PIL import Image

from gpu_worker.edits.crop import CropPath
from gpu_worker.edits.timeline import ClipTime
from gpu_worker.media.frames import Box
from schemas.edits import FramingParams
from tests.http_server import serving
from tests.page.conftest import PHONE
from tests.page.screens import (
    choose,
    complete,
    drag,
    drop,
    export,
    request,
    seek,
    tab_to,
    uploaded,
)


def times(page):
    """Returns the moments of all videos that are shown."""
    return page.evaluate(
        "[...document.querySelectorAll('.compare video')].map((v) => v.currentTime)"
    )


def job_of(stack, job_id):
    return stack.client.get(f"/api/jobs/{job_id}").json()


def test_from_a_dropped_file_to_a_played_result(browser, stack, clip, tmp_path):
    """Dropped, cropped at two moments, quoted, sent, watched, compared, played, downloaded
    whole.
    """
    page = browser()
    drop(page, clip)
    uploaded(page)
    assert request(page)["params"].get("crop_keyframes") is None
    drag(page, "[data-item=crop] .body", -120)
    seek(page, 1.52)
    drag(page, "[data-item=crop] .body", 300)
    first, second = request(page)["params"]["crop_keyframes"]
    assert (first["time"], second["time"]) == (0, 1.52)
    assert first["x"] < 219 - 50 < 219 + 50 < second["x"]
    assert first["width"] == pytest.approx(first["height"] * 9 / 16, abs=0.2)
    page.select_option("#size", "720x1280")
    page.wait_for_selector(".quote strong:text('2.0 s of video')")
    job_id = export(page)
    complete(page)
    seek(page, 1.0, ".compare")
    assert times(page) == pytest.approx([1.0, 1.0], abs=0.05)
    page.click(".compare [aria-label=Play]")
    page.wait_for_function("() => document.querySelector('.after video').ended")
    assert times(page) == pytest.approx([2.0, 2.0], abs=0.2)
    assert page.evaluate(
        "(({videoWidth: w, videoHeight: h}) => [w, h])(document.querySelector('.after video'))"
    ) == [720, 1280]
    told = page.locator(".history").inner_text()
    assert "Accepted" in told
    assert "Done" in told
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "out.mp4")
    result = job_of(stack, job_id)["result"]
    assert hashlib.sha256((tmp_path / "out.mp4").read_bytes()).hexdigest() == result["sha256"]


def test_the_source_under_the_wipe_is_where_the_result_is(browser, stack, clip):
    """The two halves of the picture show the same place of the source at the same moment: PSNR
    of one against the other.
    """
    key = stack.upload(clip)
    keys = [
        {"time": 0, "x": 20, "y": 0, "width": 202.5, "height": 360},
        {"time": 2, "x": 400, "y": 0, "width": 202.5, "height": 360},
    ]
    url = stack.submit(key, output_width=404, output_height=718, crop_keyframes=keys)
    stack.finished(url)
    page = browser(f"#{url.removeprefix('/api')}")
    page.wait_for_function("() => document.querySelector('.before video')?.readyState >= 2")
    seek(page, 1.0, ".compare")
    halves = []
    for wipe in (0, 100):
        page.evaluate(
            """(share) => {
              const range = document.querySelector(".wipe");
              range.value = share;
              range.dispatchEvent(new Event("input"));
            }""",
            wipe,
        )
        page.wait_for_timeout(200)
        halves.append(page.locator(".wiped").screenshot())
    assert psnr(*halves) > 24
    page.click("text=Side by side")
    outline = page.locator(".outline").bounding_box()
    source = page.locator(".before").bounding_box()
    assert (outline["x"] - source["x"]) / source["width"] == pytest.approx(210 / 640, abs=0.02)


def psnr(first, second):
    """Returns the PSNR in dB of two pictures' middles, where no label is."""
    a, b = (
        np.asarray(Image.open(io.BytesIO(data)).convert("L"), dtype=float)
        for data in (first, second)
    )
    height, width = a.shape
    a, b = (x[height // 4 : -height // 4, width // 20 : -width // 20] for x in (a, b))
    return 10 * np.log10(255**2 / np.mean((a - b) ** 2))


def test_a_job_outlives_a_reload_and_the_broker(browser, stack, big_buck_bunny):
    """Reloaded in the middle, the page knows all; the broker killed in the middle, it says so,
    and goes on by itself.
    """
    browser.may_fail = True
    page = browser()
    choose(page, big_buck_bunny)
    uploaded(page)
    job_id = export(page)
    page.wait_for_selector(".history :text('Editing')")
    page.reload()
    page.wait_for_selector(".history :text('Accepted')")
    page.click("nav >> text=Jobs")
    page.click(f"#job-{job_id}")
    page.wait_for_selector(".state .badge:text('Working')")
    stack.kill("broker")
    page.wait_for_selector(".line.away")
    page.wait_for_selector(".line.live, #download", timeout=60_000)
    complete(page)
    assert page.locator(".history li").first.inner_text().endswith("Accepted")
    assert job_of(stack, job_id)["attempt"] == 1


def test_a_job_is_cancelled_and_sent_again(browser, stack, big_buck_bunny):
    """The GPU is stopped; the retry is a job of its own, which leads back; its edit can be
    changed and sent anew.
    """
    page = browser(f"#{stack.submit(stack.upload(big_buck_bunny)).removeprefix('/api')}")
    cancelled = page.url
    page.wait_for_selector(".history :text('Editing')")
    page.click("#cancel")
    page.wait_for_selector(".badge.cancelled", timeout=60_000)
    page.click("#retry")
    page.wait_for_function("(was) => location.href !== was", arg=cancelled)
    page.click(".facts a[href^='#/jobs/']")
    page.wait_for_url(cancelled)
    page.go_back()
    page.click("#cancel")
    page.wait_for_selector(".badge.cancelled", timeout=60_000)
    page.click("#again")
    page.wait_for_selector("[data-item=crop]")
    assert request(page)["input_key"].endswith("/clip.mp4")


def test_an_upload_goes_on_after_a_cut(browser, clip, tmp_path):
    """The line is cut, the page loaded anew, the same file chosen again: only what is missing is
    sent.
    """
    browser.may_fail = True
    large = tmp_path / "large.mp4"
    room = 130_000_000
    # A player skips a box that is called `free`.
    with large.open("wb") as file:
        file.write(clip.read_bytes() + struct.pack(">I4s", room, b"free"))
        file.truncate(clip.stat().st_size + room)
    page = browser()
    sent = []
    page.on(
        "response",
        lambda reply: (
            sent.append(part_of(reply.url)) if reply.ok and reply.request.method == "PUT" else None
        ),
    )

    def cut(route):
        page.context.set_offline(True)
        route.abort("connectionreset")

    page.route("**/*partNumber=5*", cut)
    choose(page, large)
    page.wait_for_selector(".files .alert", timeout=60_000)
    assert "What has arrived is kept" in page.locator(".files .alert").inner_text()
    before = set(sent)
    assert 0 < len(before) < 8
    sent.clear()
    page.unroute_all()
    page.context.set_offline(False)
    page.reload()
    choose(page, large)
    uploaded(page)
    # The store may hold a part whose reply the cut took away: such a part is sent no more.
    assert "5" in sent
    assert not before & set(sent)
    assert len(sent) == len(set(sent)) < 8
    page.reload()
    page.wait_for_selector("[data-item=crop]")
    assert request(page)["input_key"].endswith("/large.mp4")


def part_of(url):
    return httpx.URL(url).params["partNumber"]


def test_what_is_no_video_is_refused_with_a_reason(browser, tmp_path, stack):
    """A text at once, by name; what only looks like a video by the worker, in a sentence, and
    nothing is lost.
    """
    page = browser()
    notes, broken = tmp_path / "notes.txt", tmp_path / "broken.mp4"
    notes.write_text("no video")
    broken.write_bytes(b"neither is this" * 1000)
    page.set_input_files("#file", notes)
    assert "notes.txt is not a video" in page.locator("[role=alert]:visible").inner_text()
    choose(page, broken)
    page.wait_for_selector("text=cannot play the file")
    uploaded(page)
    job_id = export(page)
    page.wait_for_selector(".state .alert", timeout=60_000)
    error = job_of(stack, job_id)["error"]
    assert error in page.locator(".state .alert").inner_text()


def test_the_request_can_be_written_by_hand(browser, clip):
    """What is typed is what is edited; what is wrong is said with its field; curl and the
    console get the same.
    """
    browser.may_fail = True
    page = browser()
    choose(page, clip)
    uploaded(page)
    typed = request(page)
    typed["params"] |= {"rotation": 5, "segments": [{"start": 0, "end": 1, "speed": 0.5}]}
    typed["metadata"] = {"said": "it's $HOME"}
    page.fill("#json", json.dumps(typed))
    page.wait_for_selector(".quote strong:text('3.0 s of video')")
    page.click("text=RunPod console")
    console = json.loads(page.locator("#json").input_value())["input"]
    assert (console["params"]["rotation"], console["user_id"], console["output_key"]) == (
        5,
        "local",
        "final_videos/console-test.mp4",
    )
    page.click("text=curl")
    assert json.loads(shlex.split(page.locator("#json").input_value())[-1]) == typed
    page.click(".tabs >> text=JSON")
    page.fill("#json", json.dumps(typed | {"params": {"start_time": 9, "end_time": 3}}))
    page.wait_for_selector(".wrong :text('end_time')")
    page.fill("#json", "{")
    assert page.locator("#export").is_disabled()


def test_highlights_texts_and_clips(browser, stack, clip):
    """Each type's own tools make a request that the broker takes and the worker carries out."""
    page = browser()
    choose(page, clip)
    uploaded(page)
    page.click("label:has(#type-overlay)")
    page.click("#add-highlight")
    drag(page, "[data-item=region-0] .body", 60, 40)
    page.click("#add-text")
    page.fill("#text-0-words", "Goal")
    page.press("#text-0-words", "Tab")
    params = request(page)["params"]
    assert (params["text_layers"][0]["text"], len(params["highlight_regions"][0]["keyframes"])) == (
        "Goal",
        1,
    )
    assert params["highlight_regions"][0]["keyframes"][0]["x"] > 330
    overlay = export(page)
    page.click("nav >> text=New export")
    choose(page, clip)
    uploaded(page)
    page.click("label:has(#type-annotate)")
    page.click("#add-clip")
    page.fill("#clip-0-name", "Kick-off")
    page.fill("#clip-0-end", "1")
    annotate = export(page)
    page.click("nav >> text=New export")
    page.set_input_files("#file", [clip, clip])
    uploaded(page)
    page.wait_for_selector(".files :text('640 × 360')")
    assert [clip["end_time"] for clip in request(page)["params"]["clips"][:1]] == [2]
    join = export(page)
    ended = [stack.finished(f"/api/jobs/{job_id}") for job_id in (overlay, annotate, join)]
    assert [(job["type"], job["status"]) for job in ended] == [
        ("overlay", "complete"),
        ("annotate", "complete"),
        ("multi_clip", "complete"),
    ]
    assert [job["result"]["duration_seconds"] for job in ended] == pytest.approx([2, 1, 4], abs=0.1)


def test_the_edit_survives_what_people_do(browser, clip, tmp_path):
    """Looking at other types and other screens, a reload, nonsense in a field, a file with an
    odd name.
    """
    # Quotes of edits that are not whole yet.
    browser.may_fail = True
    odd = tmp_path / "cash $& $$ 'x' ü.mp4"
    odd.write_bytes(clip.read_bytes())
    page = browser()
    choose(page, odd)
    uploaded(page)
    assert request(page)["input_key"].endswith("/cash $& $$ 'x' ü.mp4")
    drag(page, "[data-item=crop] .body", 80)
    keys = request(page)["params"]["crop_keyframes"]
    for other in ("overlay", "annotate", "framing"):
        page.click(f"label:has(#type-{other})")
    assert request(page)["params"]["crop_keyframes"] == keys
    page.click("nav >> text=Jobs")
    page.click("nav >> text=New export")
    page.select_option("#size", "custom")
    page.fill("#output_width", "")
    page.press("#output_width", "Tab")
    page.fill("#crop-width", "")
    page.press("#crop-width", "Tab")
    page.fill("#crop-x", "99999")
    page.press("#crop-x", "Tab")
    (key,) = request(page)["params"]["crop_keyframes"]
    assert key["x"] + key["width"] == pytest.approx(640, abs=0.2)
    page.fill("#json", "{")
    page.click("#add-key")
    assert request(page)["params"]["crop_keyframes"] == [key]
    assert page.locator("#export").is_enabled()
    page.reload()
    page.wait_for_selector("[data-item=crop]")
    assert request(page)["params"]["crop_keyframes"] == [key]
    page.click("label:has(#type-multi_clip)")
    page.click("#clip-0-remove")
    page.reload()
    page.wait_for_selector("#choose")


def test_several_files_and_another_type(browser, clip, tmp_path):
    """What is on the picture is what is edited; one that is removed is gone from the request."""
    browser.may_fail = True
    second = tmp_path / "second.mp4"
    second.write_bytes(clip.read_bytes())
    page = browser()
    page.set_input_files("#file", [clip, second])
    uploaded(page)
    assert [one["input_key"].rpartition("/")[2] for one in request(page)["params"]["clips"]] == [
        "bunny.mp4",
        "second.mp4",
    ]
    page.click("label:has(#type-framing)")
    assert request(page)["input_key"].endswith("bunny.mp4")
    page.click("#show-1")
    assert request(page)["input_key"].endswith("second.mp4")
    page.click("#remove-1")
    assert request(page)["input_key"].endswith("bunny.mp4")
    page.click("label:has(#type-multi_clip)")
    assert [one["input_key"].rpartition("/")[2] for one in request(page)["params"]["clips"]] == [
        "bunny.mp4"
    ]


def test_an_upload_goes_on_while_other_screens_are_looked_at(browser, stack, clip):
    """And what waits for it is sent when it is over, without taking anybody away from where they
    are.
    """
    page = browser()
    held = []
    page.route("**/uploads/*/bunny.mp4?*", lambda route: held.append(route))
    choose(page, clip)
    page.click("#export:text-is('Export when uploaded')")
    page.click("nav >> text=Jobs")
    page.wait_for_selector("h1:text('Jobs')")
    before = {job["job_id"] for job in stack.client.get("/api/jobs").json()["jobs"]}
    while not held:
        page.wait_for_timeout(50)
    held[0].continue_()
    page.wait_for_selector("#told:text('is uploaded and sent')")
    assert page.url.endswith("#/jobs")
    (new,) = {job["job_id"] for job in stack.client.get("/api/jobs").json()["jobs"]} - before
    assert stack.finished(f"/api/jobs/{new}")["status"] == "complete"


def test_by_keyboard_alone(browser, clip, is_accessible):
    """Every step of the way has keys, in the order of the screen, and the focus is never lost."""
    page = browser()
    page.on("filechooser", lambda chooser: chooser.set_files(clip))
    tab_to(page, "#choose")
    page.keyboard.press("Enter")
    uploaded(page)
    tab_to(page, "[data-item=crop]")
    for key in ("ArrowLeft", "ArrowLeft", "Shift+ArrowRight", "-"):
        page.keyboard.press(key)
    (first,) = request(page)["params"]["crop_keyframes"]
    assert first["x"] == pytest.approx(218.75 - 19 + 202.5 * (1 - 1 / 1.05) / 2, abs=0.2)
    tab_to(page, "[aria-label=Moment]")
    page.keyboard.press("End")
    page.keyboard.press("k")
    assert len(request(page)["params"]["crop_keyframes"]) == 2
    page.keyboard.press("Delete")
    assert len(request(page)["params"]["crop_keyframes"]) == 1
    tab_to(page, "[name=type]")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.activeElement.id === 'type-upscale'")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => document.activeElement.id === 'type-framing'")
    tab_to(page, "#mode")
    tab_to(page, "#export")
    page.keyboard.press("Enter")
    page.wait_for_selector("#cancel, #download")
    complete(page)
    tab_to(page, "#download")
    with page.expect_download():
        page.keyboard.press("Enter")
    tab_to(page, ".wipe")
    page.keyboard.press("ArrowRight")
    assert page.locator(".wipe").input_value() == "51"


@pytest.mark.parametrize(
    "size", [pytest.param({}, id="desk-light"), pytest.param(PHONE, id="phone-dark")]
)
def test_all_screens_are_accessible(browser, stack, clip, is_accessible, size):
    """By axe-core, without a violation, at both sizes and in both schemes; nothing scrolls
    sideways.
    """
    page = browser(**size)
    is_accessible(page, "new export, empty")
    choose(page, clip)
    uploaded(page)
    page.click("#add-key")
    page.wait_for_selector(".track .key")
    is_accessible(page, "new export, crop")
    page.click("label:has(#type-overlay)")
    page.click("#add-highlight")
    page.click("#add-text")
    is_accessible(page, "new export, highlights")
    page.click("label:has(#type-annotate)")
    page.click("#add-clip")
    is_accessible(page, "new export, clips")
    export(page)
    is_accessible(page, "job, open")
    complete(page)
    page.wait_for_selector(".compare")
    page.click("summary")
    is_accessible(page, "job, complete")
    failed = stack.finished(stack.submit("uploads/none.mp4"))
    page.goto(f"{stack.stack.broker_url}/#/jobs/{failed['job_id']}")
    page.wait_for_selector(".state .alert")
    is_accessible(page, "job, failed")
    page.goto(f"{stack.stack.broker_url}/#/jobs")
    page.wait_for_selector(".jobs tbody tr")
    is_accessible(page, "jobs")
    page.goto(f"{stack.stack.broker_url}/#/operations")
    page.wait_for_selector(".chart")
    page.click("summary >> nth=0")
    is_accessible(page, "operations")
    # The browser tells of the 401.
    browser.may_fail = True
    page.click("#sign-out")
    page.wait_for_selector(".signin")
    is_accessible(page, "sign in")


def test_the_list_is_live_and_can_be_searched(browser, stack, clip):
    """A job that somebody sends appears by itself; filters and words narrow the list, and the
    address keeps them.
    """
    page = browser("#/jobs")
    page.wait_for_selector("h1:text('Jobs')")
    url = stack.submit(stack.upload(clip, "needle.mp4"))
    job_id = url.rpartition("/")[2]
    page.wait_for_selector(f"#job-{job_id}", timeout=20_000)
    page.wait_for_selector(f"tr:has(#job-{job_id}) .badge.complete", timeout=60_000)
    failed = stack.finished(stack.submit("uploads/none.mp4"))["job_id"]
    page.click(".filters >> text=Failed")
    page.wait_for_selector(f"#job-{failed}")
    assert page.locator(f"#job-{job_id}").count() == 0
    page.click(".filters >> text=All")
    page.fill("#search", "NEEDLE")
    page.wait_for_function("() => document.querySelectorAll('.jobs tbody tr').length === 1")
    page.reload()
    page.wait_for_selector(f"#job-{job_id}")
    assert page.locator(".jobs tbody tr").count() == 1
    page.fill("#search", "no such thing")
    page.wait_for_selector("text=No job is like that")


def test_without_a_live_line_the_page_polls(browser, stack, big_buck_bunny):
    """Where a proxy lets no stream through."""
    browser.may_fail = True
    page = browser()
    page.route("**/events?*", lambda route: route.abort())
    url = stack.submit(stack.upload(big_buck_bunny))
    page.goto(f"{stack.stack.broker_url}/#{url.removeprefix('/api')}")
    page.wait_for_selector(".line.polling")
    complete(page)


def test_operators_see_the_fleet_and_drain_it(browser, stack):
    """What the broker counts; a drain is asked about first, and undone."""
    page = browser("#/operations")
    page.wait_for_selector(".tile")
    tiles = page.locator(".tiles").inner_text()
    assert "Workers up\n1" in tiles
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#drain")
    page.wait_for_selector("text=The broker is being drained")
    assert (
        stack.client.post("/api/jobs", json={"type": "framing", "input_key": "a.mp4"}).status_code
        == 503
    )
    page.click("text=Take jobs again")
    page.wait_for_selector("#drain:text-is('Drain')")


def test_who_signs_in_sees_ones_own(browser, stack):
    """No key, a wrong one, another user's: each is told, and operators' things are not shown."""
    # The browser itself tells of each 401.
    browser.may_fail = True
    made = stack.client.post("/api/keys", json={"user_id": "alice"}).json()
    theirs = stack.submit("uploads/theirs.mp4")
    page = browser(key=None)
    page.fill("#key", "rb_wrong")
    page.click("text=Sign in >> nth=-1")
    page.wait_for_selector("text=The broker does not know this key")
    page.fill("#key", made["key"])
    page.press("#key", "Enter")
    page.wait_for_selector("nav >> text=New export")
    assert page.locator("nav >> text=Operations").count() == 0
    page.goto(f"{stack.stack.broker_url}/#{theirs.removeprefix('/api')}")
    page.wait_for_selector("text=There is no such job")
    page.goto(f"{stack.stack.broker_url}/#key={stack.stack.api_key}")
    page.click("#ask-yes")
    page.wait_for_selector("nav >> text=Operations")
    assert stack.stack.api_key not in page.url
    page.click("#sign-out")
    page.wait_for_selector(".signin")
    assert page.evaluate("localStorage.length") == 0


@pytest.mark.abuse
def test_a_link_signs_nobody_in_as_somebody_else(browser, stack, is_accessible):
    """A stored key is replaced after a question alone; each key leaves the address at once."""
    other = stack.client.post("/api/keys", json={"user_id": "mallory"}).json()["key"]
    page = browser()
    stored = "localStorage.getItem('reelbroker-key')"

    def follow(key):
        """Opens a link in the tab that shows the page, which loads nothing anew."""
        page.goto(f"{stack.stack.broker_url}/#/jobs")
        page.wait_for_selector(".filters")
        page.evaluate("(key) => (location.hash = `#key=${key}`)", key)
        page.wait_for_url("**/#/new")

    for answer in ("click", "Enter", "Escape"):
        follow(other)
        page.wait_for_selector("dialog[open]")
        assert other not in page.url
        assert page.evaluate("document.activeElement.id") == "ask-no"
        assert page.locator("dialog").inner_text().startswith("Use the key from this link?")
        page.click("#ask-no") if answer == "click" else page.keyboard.press(answer)
        page.wait_for_selector("#who :text('local')")
        page.wait_for_selector(".new")
        assert page.locator("dialog").count() == 0
        assert page.evaluate(stored) == stack.stack.api_key
    # To leave the screen is to answer no. A page that is loaded anew asks as well.
    follow(other)
    page.wait_for_selector("dialog[open]")
    page.evaluate("location.hash = '#/jobs'")
    page.wait_for_selector(".filters")
    assert page.locator("dialog").count() == 0
    page.evaluate("(key) => { location.hash = `#key=${key}`; location.reload(); }", other)
    page.wait_for_selector("dialog[open]")
    assert other not in page.url
    is_accessible(page, "question about a key")
    assert page.evaluate(stored) == stack.stack.api_key
    page.click("#ask-no")
    # The same key, and what cannot be one, are no question.
    for given in (stack.stack.api_key, "no%20key", ""):
        follow(given)
        page.wait_for_selector(".new")
        assert page.locator("dialog").count() == 0
        assert page.evaluate(stored) == stack.stack.api_key
    follow(other)
    page.click("#ask-yes")
    page.wait_for_selector("#who :text('mallory')")
    assert page.evaluate(stored) == other
    assert page.locator("nav >> text=Operations").count() == 0


@pytest.mark.abuse
def test_nobody_frames_the_page_or_the_reference(stack, chromium, tmp_path):
    """A page of another origin can frame a file of its own, and no answer of the broker."""
    page, refused, limit = chromium.new_page(), [], "frame-ancestors 'none'"
    page.on("console", lambda said: refused.append(said.text) if limit in said.text else None)
    (tmp_path / "own.html").write_text("its own")
    with serving(functools.partial(SimpleHTTPRequestHandler, directory=tmp_path)) as port:
        paths = ("/", "/docs", "/docs/page.js", "/openapi.json", "/healthz", "/nothing")
        addresses = ["own.html", *(stack.stack.broker_url + path for path in paths)]
        frames = [f'<iframe src="{address}"></iframe>' for address in addresses]
        (tmp_path / "index.html").write_text("".join(frames))
        page.goto(f"http://localhost:{port}/")
        assert page.frame(url="**/own.html").inner_text("body") == "its own"
        for _ in range(100):
            if len(refused) == len(paths):
                break
            page.wait_for_timeout(100)
    assert len(refused) == len(paths), refused
    page.close()


def test_the_picture_shows_what_the_worker_makes(browser):
    """The page's crop and times are the worker's, on random edits: to a millionth."""
    draw = random.Random(11)
    edits = [random_edit(draw) for _ in range(300)]
    page = browser()
    moments = [draw.uniform(0, 12) for _ in edits]
    script = """async ([edits, moments]) => {
      const {cropAt, pieces, sourceOf} = await import("/web/edit.js");
      return edits.map((params, index) => {
        const crop = cropAt(params, moments[index], 1280, 720);
        const map = pieces("framing", params, 10);
        const seconds = map.reduce((sum, piece) => sum + piece.seconds, 0);
        const { moment } = sourceOf(map, (seconds * moments[index]) / 12);
        return [crop.x, crop.y, crop.width, crop.height, seconds, moment];
      });
    }"""
    for found, params, moment in zip(
        page.evaluate(script, [edits, moments]), edits, moments, strict=True
    ):
        framing = FramingParams.model_validate(params)
        box = crop_of(framing).at(moment)
        clip = ClipTime.of(framing, 10.0)
        source = clip.source_time(clip.output_seconds * moment / 12)
        assert found == pytest.approx(
            [box.x, box.y, box.width, box.height, clip.output_seconds, source], abs=1e-6
        )


def random_edit(draw):
    """Returns params of keyframes that reach the picture's edges, a trim, and speeds."""
    times = sorted(draw.sample(range(100), draw.randint(1, 6)))
    keys = []
    for time in times:
        width = draw.uniform(50, 400)
        keys.append(
            {
                "time": time / 10,
                "x": draw.uniform(0, 1280 - width),
                "y": draw.uniform(0, 720 - width),
                "width": width,
                "height": width,
            }
        )
    start, middle, _ = sorted(draw.uniform(0, 10) for _ in range(3))
    segments = [
        {"start": start, "end": middle, "speed": draw.uniform(0.25, 4)},
        {"start": middle, "speed": draw.uniform(0.25, 4)},
    ]
    trim = {"start_time": draw.uniform(0, 3), "end_time": draw.uniform(4, 12)}
    return {
        "crop_keyframes": keys,
        "interpolation": draw.choice(["linear", "catmull_rom"]),
        "segments": segments[: draw.randint(0, 2)],
        **trim,
    }


def crop_of(framing):
    keys = framing.crop_keyframes
    boxes = tuple(Box(key.x, key.y, key.width, key.height) for key in keys)
    return CropPath(tuple(key.time for key in keys), boxes, framing.interpolation, 1280, 720)
