"""What a person does on the page, in words that tests share."""

import base64
import json


def choose(page, path):
    """Chooses a file, and waits until it is on the picture."""
    page.set_input_files("#file", path)
    page.wait_for_selector(".editor:not([hidden])")


def drop(page, path):
    """Drops a file, as it comes from a file manager."""
    content = base64.b64encode(path.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """([name, content]) => {
          const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
          const transfer = new DataTransfer();
          transfer.items.add(new File([bytes], name, {type: "video/mp4"}));
          return transfer;
        }""",
        [path.name, content],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.dispatch_event(".new", event, {"dataTransfer": transfer})
    page.wait_for_selector(".editor:not([hidden])")


def drag(page, selector, right, down=0):
    """Drags what is on the picture by so many pixels of the screen."""
    box = page.locator(selector).bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + right / 2, y + down / 2)
    page.mouse.move(x + right, y + down)
    page.mouse.up()


def seek(page, moment, where=".editor"):
    """Goes to a moment, and waits until the picture is there."""
    loaded = """(where) => {
      const videos = [...document.querySelectorAll(`${where} video`)];
      return videos.length && videos.every((video) => video.readyState >= 2);
    }"""
    page.wait_for_function(loaded, arg=where)
    script = """([where, moment]) => {
      const range = document.querySelector(`${where} .timeline input`);
      range.value = moment;
      range.dispatchEvent(new Event("input"));
    }"""
    page.evaluate(script, [where, moment])
    still = "(where) => [...document.querySelectorAll(`${where} video`)].every((v) => !v.seeking)"
    page.wait_for_function(still, arg=where)


def request(page):
    """Returns the request as the page would send it."""
    return json.loads(page.locator("#json").input_value())


def uploaded(page):
    """Waits until the file is in the bucket."""
    page.wait_for_selector("#export:text-is('Export')", timeout=60_000)


def export(page):
    """Sends what is edited; returns the job's id."""
    page.click("#export")
    page.wait_for_url("**/#/jobs/*")
    page.wait_for_selector(".job")
    return page.url.rpartition("/")[2]


def complete(page):
    """Waits for the job's good end."""
    page.wait_for_selector("#download", timeout=90_000)


def tab_to(page, selector, most=80):
    """Presses Tab until the focus is there."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab does not lead to {selector}")
