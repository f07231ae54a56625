"""Makes docs/pictures/*.jpg: each screen of the page, taken of the whole system on this machine.

Chromium takes them: scripts/test installs it. The jobs that are seen are real ones, made from the
sample clip; the day of other jobs on the Operations screen is made up, since a stack that has just
started has no yesterday.
"""

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from playwright.sync_api import Browser, Page, sync_playwright
from sample import sample_clip
from sqlalchemy import insert

from broker.cli.main import log_to_stderr
from broker.client import Client
from broker.clock import HOUR_MS, now_ms
from broker.embedded.stack import Stack
from broker.store.engine import open_engine
from broker.store.tables import table

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
DESK = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}
PRICE = 0.00026
CROP = [(0.0, 300.0), (2.0, 360.0), (4.0, 180.0), (5.2, 200.0)]


def make_up_a_day(database: Path) -> None:
    """Writes 24 hours of ended jobs of somebody else's into a new database."""
    chance, now = random.Random(7), now_ms()  # noqa: S311  # a picture
    rows = []
    for hour in range(24):
        for number in range(int(6 + 14 * abs(12 - (hour + 3) % 24) / 12)):
            ended = now - hour * HOUR_MS - chance.randrange(HOUR_MS // 2)
            status = chance.choices(("complete", "error", "cancelled"), (90, 6, 4))[0]
            seconds = round(chance.lognormvariate(3.2, 0.6), 1)
            code = chance.choice(("invalid_media", "invalid_media", "worker_lost", "out_of_memory"))
            rows.append(
                {
                    "id": f"made-up-{hour}-{number}",
                    "user_id": "somebody",
                    "type": "framing",
                    "status": status,
                    "phase": "done",
                    "progress": 100,
                    "message": "",
                    "params": "{}",
                    "meta": "{}",
                    "output_key": "final_videos/x.mp4" if status == "complete" else None,
                    "error_code": code if status == "error" else None,
                    "attempt": 1,
                    "max_attempts": 3,
                    "gpu_seconds": seconds,
                    "cost_usd": round(seconds * PRICE, 6),
                    "created_at": ended - 90_000,
                    "started_at": ended - 60_000,
                    "completed_at": ended,
                    "due_at": ended,
                    "version": 5,
                }
            )
    engine = open_engine(f"sqlite:///{database}")
    with engine.begin() as connection:
        connection.execute(insert(table("export_jobs")), rows)
    engine.dispose()


class Camera:
    """Takes pictures of the page, of a stack that runs."""

    def __init__(self, browser: Browser, url: str, key: str) -> None:
        self._browser, self._url, self._key = browser, url, key

    def open(self, at: str, scheme: Literal["light", "dark"], device: dict[str, Any]) -> Page:
        page = self._browser.new_context(**device, color_scheme=scheme).new_page()
        page.goto(f"{self._url}/#key={self._key}")
        page.wait_for_selector("#nav a")
        page.goto(f"{self._url}/#/{at}")
        return page

    def take(self, page: Page, name: str) -> None:
        page.wait_for_timeout(700)
        page.evaluate("document.activeElement.blur()")
        page.screenshot(path=PICTURES / f"{name}.jpg", type="jpeg", quality=85)
        print(f"docs/pictures/{name}.jpg")


def edit(page: Page, clip: Path) -> None:
    """Crops a clip along a path."""
    page.set_input_files("#file", clip)
    page.wait_for_selector("[data-item=crop]")
    page.wait_for_selector("#export:text-is('Export')")
    for moment, x in CROP:
        seek(page, ".editor", moment)
        page.wait_for_selector("#crop-x")
        page.fill("#crop-x", str(x))
        page.press("#crop-x", "Enter")
        page.wait_for_timeout(150)
    seek(page, ".editor", 2.8)


def seek(page: Page, where: str, moment: float) -> None:
    loaded = """(where) => [...document.querySelectorAll(`${where} video`)]
        .every((video) => video.readyState >= 2)"""
    page.wait_for_function(loaded, arg=where)
    page.evaluate(
        """([where, moment]) => {
          const range = document.querySelector(`${where} .timeline input`);
          range.value = moment;
          range.dispatchEvent(new Event("input"));
        }""",
        [where, moment],
    )
    page.wait_for_timeout(400)


def photograph(camera: Camera, client: Client, clip: Path) -> None:
    """Goes through all screens."""
    page = camera.open("new", "light", DESK)
    camera.take(page, "drop")
    edit(page, clip)
    camera.take(page, "new-export")
    page.click("#export")
    page.wait_for_selector(".history :text('Editing')")
    page.wait_for_function("() => document.querySelector('.state progress').value > 30")
    camera.take(page, "job-open")
    page.wait_for_selector("#download", timeout=90_000)
    page.wait_for_selector(".compare")
    seek(page, ".compare", 2.8)
    camera.take(page, "job")
    job = page.url.rpartition("/")[2]
    key = client.get(job).input_key
    client.submit({"type": "framing", "input_key": "uploads/none/gone.mp4"})
    client.cancel(client.submit({"type": "upscale", "input_key": key}).job_id)
    client.submit(
        {
            "type": "annotate",
            "input_key": key,
            "params": {"clips": [{"start_time": 0, "end_time": 5, "name": "Goal"}] * 6},
        }
    )
    page = camera.open("jobs", "light", DESK)
    page.wait_for_selector(".jobs progress")
    page.wait_for_timeout(4000)
    camera.take(page, "jobs")
    page = camera.open("operations", "dark", DESK)
    page.wait_for_selector(".chart")
    camera.take(page, "operations")
    page = camera.open("new", "dark", DESK)
    page.set_input_files("#file", clip)
    page.wait_for_selector("[data-item=crop]")
    page.click("label:has(#type-overlay)")
    page.click("#add-highlight")
    page.wait_for_selector("[data-item=region-0]")
    for _ in range(24):
        page.press("[data-item=region-0]", "ArrowLeft")
    for _ in range(4):
        page.press("[data-item=region-0]", "ArrowDown")
        page.press("[data-item=region-0]", "+")
    camera.take(page, "highlight")
    page = camera.open("new", "light", PHONE)
    edit(page, clip)
    page.evaluate("scrollTo(0, 0)")
    camera.take(page, "phone-new-export")
    page = camera.open(f"jobs/{job}", "dark", PHONE)
    page.wait_for_selector(".compare")
    seek(page, ".compare", 2.8)
    page.evaluate("document.querySelector('.result').scrollIntoView({block: 'start'})")
    camera.take(page, "phone-job")


async def with_stack(folder: Path, work: Callable[[Stack], None]) -> None:
    async with Stack(folder) as stack:
        await asyncio.to_thread(work, stack)


def main() -> None:
    log_to_stderr("WARNING")
    PICTURES.mkdir(exist_ok=True)

    def work(stack: Stack) -> None:
        with sync_playwright() as playwright, Client(stack.broker_url, stack.api_key) as client:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=flags
            )
            photograph(Camera(browser, stack.broker_url, stack.api_key), client, sample_clip())
            browser.close()

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        make_up_a_day(Path(folder) / "reelbroker.db")
        asyncio.run(with_stack(Path(folder), work))
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
