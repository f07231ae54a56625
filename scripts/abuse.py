"""Attacks a running broker as a stranger and as a user would, and reports what held.

It takes about a minute. The target gets some 200 MB of requests, 200 connections that stay
half-open for up to 15 s, a burst of 300 requests (which count towards the user's limit), and a file
of a few bytes under `uploads/`. It registers no webhook and submits no job unless the target takes
what it should refuse: then the webhook is removed and the job is cancelled at once. Meanwhile other
users may wait. Attack only what is yours. The last line is one JSON object; the exit status is 1 if
anything fell.
"""

import argparse
import asyncio
import contextlib
import json
import ssl
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import websockets
from rich.console import Console
from rich.table import Table

MIB = 2**20
HEALTH_SECONDS, ANSWER_BYTES, HEADER_BYTES = 1.0, 100_000, 65_536
#: The target closes after 10 s, and needs a moment for it.
HEADERS_WITHIN, HALF_SENT, BURST = 13.0, 200, 300


class Fell(Exception):
    """The target did not do what it should; the text says what it did instead."""


@dataclass
class Target:
    """A broker: where it is, how a user asks it, and how a stranger does."""

    url: str
    key: str
    body_seconds: float
    user: httpx.AsyncClient
    stranger: httpx.AsyncClient

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Opens a raw connection."""
        parts = urlsplit(self.url)
        context = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if context else 80)
        return await asyncio.open_connection(parts.hostname, port, ssl=context)

    def path(self, path: str) -> bytes:
        """Returns a path as it stands in a request's line, below the target's own prefix."""
        return (urlsplit(self.url).path.rstrip("/") + path).encode()

    @property
    def host(self) -> bytes:
        return urlsplit(self.url).netloc.encode()


Attack = Callable[[Target], Awaitable[None]]


def refused(reply: httpx.Response, *statuses: int) -> None:
    """Checks that an answer is a short 4xx, of those statuses if any are given."""
    if not (reply.status_code in statuses if statuses else 400 <= reply.status_code < 500):
        asked = f"{reply.request.method} {str(reply.request.url)[:80]}"
        raise Fell(f"{asked} was answered with {reply.status_code}")
    if len(reply.content) > ANSWER_BYTES:
        raise Fell(f"the answer has {len(reply.content):,} bytes")


def framing(**params: Any) -> dict[str, Any]:
    return {"type": "framing", "input_key": "abuse/none.mp4", "params": params}


# ── what has no end ─────────────────────────────────────────────────────────────────────────────


async def _flood(target: Target, first: bytes, piece: bytes, most: int = 20 * MIB) -> None:
    """Sends a piece again and again; the target must hang up long before `most` bytes."""
    reader, writer = await target.connect()
    sent = 0
    try:
        async with asyncio.timeout(30):
            writer.write(first)
            while sent < most and not reader.at_eof():
                writer.write(piece)
                await writer.drain()
                sent += len(piece)
    except ConnectionError:
        return
    except TimeoutError:
        raise Fell(f"it still reads after 30 s and {sent:,} bytes") from None
    finally:
        writer.transport.abort()
    if sent >= most:
        raise Fell(f"it took {sent:,} bytes")


async def endless_header(target: Target) -> None:
    """One header without end is cut off"""
    await _flood(target, b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: ", b"a" * 65_536)


async def endless_headers(target: Target) -> None:
    """Headers without end are cut off"""
    await _flood(target, b"GET /healthz HTTP/1.1\r\nHost: a\r\n", b"X-A: aaaaaaaa\r\n" * 4000)


async def endless_path(target: Target) -> None:
    """A path without end is cut off"""
    await _flood(target, b"GET /", b"a" * 65_536)


async def endless_trailers(target: Target) -> None:
    """Trailers of a chunked body without end are cut off"""
    first = (
        b"POST %s HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer %s\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    )
    line = first % (target.path("/api/jobs/quote"), target.host, target.key.encode())
    await _flood(target, line, b"X-A: aaaaaaaa\r\n" * 4000)


async def large_header(target: Target) -> None:
    """A header of 70 KB is refused"""
    with contextlib.suppress(httpx.TransportError):
        refused(await target.stranger.get("/healthz", headers={"X-A": "a" * (HEADER_BYTES + 5000)}))


async def half_sent(target: Target) -> None:
    """Half-sent requests are closed after some ten seconds"""

    async def closes(number: int) -> bool:
        reader, writer = await target.connect()
        try:
            writer.write((b"", b"GET ", b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: ")[number % 3])
            async with asyncio.timeout(HEADERS_WITHIN + 2):
                await reader.read()
        except TimeoutError:
            return False
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
        return True

    closed = await asyncio.gather(*(closes(number) for number in range(HALF_SENT)))
    if not all(closed):
        raise Fell(
            f"{closed.count(False)} of {HALF_SENT} are still open after {HEADERS_WITHIN:.0f} s"
        )


async def slow_body(target: Target) -> None:
    """A body of a byte a second is cut off in time"""

    async def dribble() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(1)

    try:
        async with asyncio.timeout(target.body_seconds + 10):
            refused(await target.user.post("/api/jobs/quote", content=dribble()))
    except TimeoutError:
        raise Fell(f"it still reads after {target.body_seconds + 10:.0f} s") from None
    except httpx.TransportError:
        return


# ── what costs ──────────────────────────────────────────────────────────────────────────────────


async def _refuses_body(target: Target, *bodies: str) -> None:
    """Sends bodies four times each, all at once."""
    asked = (target.user.post("/api/jobs/quote", content=body.encode()) for body in bodies * 4)
    for reply in await asyncio.gather(*asked):
        refused(reply)


async def million_errors(target: Target) -> None:
    """A body of a million errors is refused in little text"""
    wrong = json.dumps(framing(crop_keyframes=["X"])).replace('"X"', ",".join(["{}"] * 330_000))
    numbers = json.dumps(framing(segments=["X"])).replace('"X"', ",".join(["7"] * 480_000))
    await _refuses_body(target, wrong, numbers)


async def many_names(target: Target) -> None:
    """An object with 80,000 unknown names is refused in little text"""
    await _refuses_body(target, json.dumps(framing(**{f"a{n}": 1 for n in range(80_000)})))


async def long_name(target: Target) -> None:
    """A name of 1 MB is not sent back"""
    await _refuses_body(target, json.dumps(framing(**{"aA" * 500_000: 1})))


async def deep_json(target: Target) -> None:
    """JSON nested without end is refused"""
    await _refuses_body(target, "[" * 900_000, '{"params":' * 90_000)


async def deep_json_by_websocket(target: Target) -> None:
    """JSON nested without end does not break a WebSocket"""
    url = f"ws{target.url.removeprefix('http')}/ws/export/abuse-{uuid.uuid4()}"
    try:
        headers = {"Authorization": f"Bearer {target.key}"}
        async with (
            websockets.connect(url, additional_headers=headers) as socket,
            asyncio.timeout(10),
        ):
            await socket.send("[" * 60_000)
            await socket.send("ping")
            while await socket.recv() != "pong":
                continue
    except (websockets.WebSocketException, TimeoutError) as error:
        raise Fell(f"the WebSocket broke: {error!r}"[:120]) from None


async def many_query_names(target: Target) -> None:
    """Thousands of names in a query are refused"""
    refused(await target.user.get("/api/jobs?" + "&".join(f"a{number}" for number in range(9000))))


async def deep_token(target: Target) -> None:
    """A token of brackets without end is no token"""
    headers = {"Authorization": f"Bearer {'W1tb' * 10_000}.e30.e30"}
    refused(await target.stranger.get("/api/jobs", headers=headers), 401)


async def large_body(target: Target) -> None:
    """A body without end is refused"""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(512):
            yield b" " * 65_536

    with contextlib.suppress(httpx.TransportError):
        refused(await target.user.post("/api/jobs/quote", content=endless()))


async def wide_text(target: Target) -> None:
    """Text wider than any picture is refused"""
    layer = {"text": "W" * 2000, "font_size": 1000, "x": 0, "y": 0, "start_time": 0, "end_time": 1}
    asked = {"type": "overlay", "input_key": "abuse/none.mp4", "params": {"text_layers": [layer]}}
    refused(await target.user.post("/api/jobs/quote", json=asked), 422)


async def burst(target: Target) -> None:
    """A burst of requests is answered, or gets a time to come again"""
    replies = await asyncio.gather(*(target.user.get("/api/me") for _ in range(BURST)))
    if wrong := {reply.status_code for reply in replies} - {200, 429}:
        raise Fell(f"answers were {sorted(wrong)}")


# ── what is another's ───────────────────────────────────────────────────────────────────────────


async def no_key(target: Target) -> None:
    """No route below /api answers without a key"""
    described = (await target.stranger.get("/openapi.json")).raise_for_status().json()
    for path, methods in described["paths"].items():
        below = path.startswith("/api/")
        for method in methods if below else ():
            some = path.replace("{type}", "framing").replace("{", "").replace("}", "")
            refused(await target.stranger.request(method, some), 401)


async def traversal(target: Target) -> None:
    """Keys and paths that lead elsewhere are refused"""
    keys = (
        "../other/a.mp4",
        "a/../../other/a.mp4",
        "/a.mp4",
        "a//b.mp4",
        "./a.mp4",
        "a\\..\\b",
        "a\0b",
    )
    for key in keys:
        refused(await target.user.post("/api/jobs/quote", json=framing() | {"input_key": key}), 422)
        refused(await target.user.get("/api/storage/presigned-url", params={"key": key}), 422)
    for path in (
        b"/web/../../pyproject.toml",
        b"/web/..%2f..%2fpyproject.toml",
        b"/docs/files/..%2f__init__.py",
    ):
        reader, writer = await target.connect()
        line = b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n"
        writer.write(line % (target.path(path.decode()), target.host))
        status = (await reader.readline()).split(b" ")[1:2]
        writer.close()
        if not status or not status[0].startswith(b"4"):
            raise Fell(f"{path.decode()} was answered with {status}")


async def control_characters(target: Target) -> None:
    """Names of files with control characters of either kind are refused"""
    for character in ("\x00", "\x1b", "\x7f", "\x85", "\x9b"):
        name = f"a{character}b.mp4"
        refused(await target.user.post("/api/videos/upload-url", json={"filename": name}), 422)
        refused(
            await target.user.post("/api/jobs/quote", json=framing() | {"input_key": name}), 422
        )


async def derived_id(target: Target) -> None:
    """A job id that the broker derives from another one (a UUID of version 8) is refused"""
    job_id = f"{str(uuid.uuid4())[:14]}8{str(uuid.uuid4())[15:]}"
    reply = await target.user.put(f"/api/jobs/{job_id}", json=framing())
    if reply.is_success:
        await target.user.post(f"/api/jobs/{job_id}/cancel")
    refused(reply)


async def private_webhooks(target: Target) -> None:
    """Webhooks to private addresses are refused, however they are spelt"""
    hosts = [
        *(
            "127.0.0.1",
            "2130706433",
            "0x7f.1",
            "0177.0.0.1",
            "localhost",
            "10.0.0.1",
            "169.254.169.254",
        ),
        *(
            "[::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:0:127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[fe80::1]",
            "[fc00::1]",
        ),
    ]
    taken = []
    for host in hosts:
        reply = await target.user.post("/api/webhooks", json={"url": f"https://{host}/"})
        if reply.is_success:
            taken.append(host)
            await target.user.delete(f"/api/webhooks/{reply.json()['id']}")
        else:
            refused(reply)
    if taken:
        raise Fell(f"taken: {', '.join(taken)}")


async def overwriting(target: Target) -> None:
    """A complete upload cannot be overwritten with its own URL"""
    asked = {"filename": "abuse.mp4", "bytes": 5}
    ticket = (
        (await target.user.post("/api/videos/upload-url", json=asked)).raise_for_status().json()
    )
    async with httpx.AsyncClient(timeout=30) as store:

        async def put(content: bytes) -> httpx.Response:
            return await store.put(ticket["upload_url"], content=content, headers=ticket["headers"])

        (await put(b"first")).raise_for_status()
        (await target.user.post(urlsplit(ticket["complete_url"]).path)).raise_for_status()
        if (again := await put(b"again")).is_success:
            raise Fell(f"the store answered {again.status_code}")


async def framed(target: Target) -> None:
    """No other page may show ours in a frame"""
    for path in ("/", "/docs"):
        policy = (await target.stranger.get(path)).headers.get("content-security-policy", "")
        if "frame-ancestors 'none'" not in policy:
            raise Fell(f"{path} has the policy {policy!r}"[:120])


#: Those that wait, all at once; and the others, one after the other.
PATIENT: tuple[Attack, ...] = (half_sent, slow_body)
ATTACKS: tuple[Attack, ...] = (
    endless_header,
    endless_headers,
    endless_path,
    endless_trailers,
    large_header,
    million_errors,
    many_names,
    long_name,
    deep_json,
    deep_json_by_websocket,
    many_query_names,
    deep_token,
    large_body,
    wide_text,
    no_key,
    traversal,
    control_characters,
    derived_id,
    private_webhooks,
    overwriting,
    framed,
    burst,
)


@contextlib.asynccontextmanager
async def healthy(target: Target) -> AsyncIterator[None]:
    """Asks for /healthz meanwhile; raises Fell where an answer took too long."""
    slowest = 0.0

    async def ask() -> None:
        nonlocal slowest
        async with httpx.AsyncClient(base_url=target.url, timeout=60) as http:
            while True:
                started = time.monotonic()
                (await http.get("/healthz")).raise_for_status()
                slowest = max(slowest, time.monotonic() - started)
                await asyncio.sleep(0.05)

    asking = asyncio.create_task(ask())
    try:
        yield
        # An answer that is under way counts as well.
        await asyncio.wait({asking}, timeout=0.2)
    finally:
        asking.cancel()
    if asking.done() and not asking.cancelled():
        raise Fell(f"/healthz failed: {asking.exception()!r}"[:120])
    if slowest > HEALTH_SECONDS:
        raise Fell(f"/healthz took {slowest:.1f} s meanwhile")


async def outcome(target: Target, attack: Attack) -> tuple[str, str]:
    """Runs one attack; returns what should hold, and how it fell, or nothing."""
    name = (attack.__doc__ or "").strip()
    try:
        async with healthy(target):
            await attack(target)
    except Fell as error:
        return name, str(error)
    except (httpx.HTTPError, OSError, KeyError, ValueError) as error:
        return name, f"no sense in the answer: {error!r}"[:120]
    return name, ""


async def attacked(url: str, key: str, body_seconds: float) -> list[tuple[str, str]]:
    """Runs all attacks; returns the outcome of each."""
    async with (
        httpx.AsyncClient(
            base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60
        ) as user,
        httpx.AsyncClient(base_url=url, timeout=60) as stranger,
    ):
        (await user.get("/api/me")).raise_for_status()
        target = Target(url, key, body_seconds, user, stranger)
        first = list(await asyncio.gather(*(outcome(target, attack) for attack in PATIENT)))
        return first + [await outcome(target, attack) for attack in ATTACKS]


def main() -> None:
    """Attacks the broker that the command line names."""
    parser = argparse.ArgumentParser(
        prog="scripts/abuse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("url", help="where the broker is: http://127.0.0.1:8000")
    parser.add_argument("key", help="an API key of a user")
    parser.add_argument(
        "--body-seconds", type=float, default=30, help="the target's REELBROKER_BODY_SECONDS"
    )
    chosen = parser.parse_args()
    try:
        outcomes = asyncio.run(attacked(chosen.url.rstrip("/"), chosen.key, chosen.body_seconds))
    except httpx.HTTPError as error:
        sys.exit(f"{chosen.url} cannot be attacked: {error}")
    table = Table("held", "what", "how it fell", box=None, pad_edge=False)
    for name, fell in outcomes:
        table.add_row("[red]no[/red]" if fell else "[green]yes[/green]", name, fell)
    Console().print(table)
    fallen = sum(bool(fell) for _, fell in outcomes)
    print(json.dumps({"tried": len(outcomes), "fell": fallen}))
    sys.exit(1 if fallen else 0)


if __name__ == "__main__":
    main()
