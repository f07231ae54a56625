"""Calls clients' servers when their jobs end: signed, tried for three days, and only in public.

Format and schedule follow Standard Webhooks 1.0. The broker resolves a target once a call, requires
that all of its addresses are public, and connects to an address that it checked, so that neither a
second answer of the DNS nor a redirect leads elsewhere.
"""

import asyncio
import base64
import ipaddress
import json
import random
import secrets
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy

import httpx
import structlog
from standardwebhooks import Webhook
from starlette.concurrency import run_in_threadpool

from broker.clock import DAY_MS, iso, now_ms
from broker.errors import InvalidRequest, NotFound
from broker.settings import Settings
from broker.store.tables import DeliveryRow, WebhookRow
from broker.store.webhooks import Outbox
from schemas.webhooks import (
    DeliveryList,
    DeliveryView,
    HookKind,
    HookTry,
    WebhookList,
    WebhookRequest,
    WebhookSecret,
    WebhookView,
)

log = structlog.get_logger(__name__)

CALL_SECONDS = 15.0
#: How long to wait before call 2, 3, … (seconds), ±10 %.
AGAIN_SECONDS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
MAX_WEBHOOKS = 10
#: Calls at once, in all and to one webhook: a receiver that hangs must not delay the others.
AT_ONCE, AT_ONCE_EACH = 20, 2
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
#: Threads of their own: a DNS server that does not answer must not delay other names.
_NAMES = ThreadPoolExecutor(4, thread_name_prefix="webhook-names")
#: All public IPv6 addresses. Others may be translated to private ones (`::ffff:0:127.0.0.1`,
#: `64:ff9b::7f00:1`).
_INTERNET = ipaddress.IPv6Network("2000::/3")


class Refused(Exception):
    """The broker must not call the target. Caught in this module."""


async def resolve(host: str, port: int) -> list[str]:
    """Returns all addresses of a host; raises OSError."""
    ask = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_NAMES, ask)
    return list(dict.fromkeys(str(info[4][0]) for info in found))


def open_caller() -> httpx.AsyncClient:
    """Returns an HTTP client without the environment's proxy, without redirects or cookies."""
    none = CookieJar(DefaultCookiePolicy(allowed_domains=[]))
    return httpx.AsyncClient(timeout=CALL_SECONDS, trust_env=False, cookies=none)


class WebhookService:
    """The webhooks of all users, for one user at a time, and the loop that calls them.

    Args:
        http: follows no redirects.
        resolve: names to addresses; tests bring their own.
        on_call: called with the outcome of each call.
    """

    def __init__(
        self,
        settings: Settings,
        outbox: Outbox,
        http: httpx.AsyncClient,
        resolve: Resolve = resolve,
        clock: Callable[[], int] = now_ms,
        on_call: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._on_call = on_call
        self._private = settings.webhooks_to_private
        self._outbox = outbox
        self._http = http
        self._resolve = resolve
        self._clock = clock
        self._woken = asyncio.Event()
        self._closed = False
        #: The webhook that each running call is for.
        self._calling: dict[asyncio.Task[None], str] = {}

    # ── what a user may do ──────────────────────────────────────────────────────────────────────

    async def add(self, user_id: str, request: WebhookRequest) -> WebhookSecret:
        """Registers a target, and returns its secret this once; raises InvalidRequest."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._address(request.url)
        except (Refused, TimeoutError) as error:
            reason = str(error) or "its name cannot be resolved in time"
            raise InvalidRequest([("/url", reason)]) from error
        known = await run_in_threadpool(self._outbox.webhooks, user_id)
        if sum(row.disabled_at is None for row in known) >= MAX_WEBHOOKS:
            raise InvalidRequest([("/url", f"you have {MAX_WEBHOOKS} webhooks already")])
        row = WebhookRow(
            id=f"wh_{secrets.token_hex(8)}",
            user_id=user_id,
            url=request.url,
            kinds=" ".join(sorted(request.kinds)),
            secret=_new_secret(),
            created_at=self._clock(),
        )
        await run_in_threadpool(self._outbox.add, row)
        return _with_secret(row)

    async def list(self, user_id: str) -> WebhookList:
        """Returns the user's webhooks."""
        rows = await run_in_threadpool(self._outbox.webhooks, user_id)
        return WebhookList(webhooks=[WebhookView(**_shown(row)) for row in rows])

    async def switch_off(self, user_id: str, webhook_id: str) -> None:
        """Disables a webhook and keeps its log; raises NotFound."""
        await self._mine(user_id, webhook_id)
        await run_in_threadpool(self._outbox.change, webhook_id, {"disabled_at": self._clock()})

    async def rotate(self, user_id: str, webhook_id: str) -> WebhookSecret:
        """Draws a new secret; the former one signs beside it for a day. Raises NotFound."""
        row = await self._mine(user_id, webhook_id)
        changes: dict[str, str | int] = {"secret": _new_secret(), "former_secret": row.secret}
        changes["rotated_at"] = self._clock()
        await run_in_threadpool(self._outbox.change, webhook_id, changes)
        return _with_secret(WebhookRow(**{**row.model_dump(), **changes}))

    async def deliveries(self, user_id: str, webhook_id: str) -> DeliveryList:
        """Returns the newest messages to a webhook, with their calls; raises NotFound."""
        await self._mine(user_id, webhook_id)
        rows = await run_in_threadpool(self._outbox.deliveries, webhook_id, 100)
        return DeliveryList(deliveries=[_delivery(row) for row in rows])

    async def send_again(self, user_id: str, webhook_id: str, delivery_id: str) -> DeliveryView:
        """Sends a message again, under the same id.

        Raises:
            NotFound: no such message.
            InvalidRequest: the webhook is disabled.
        """
        if (await self._mine(user_id, webhook_id)).disabled_at is not None:
            raise InvalidRequest([("/webhook_id", "the webhook is switched off")], status=409)
        row = await run_in_threadpool(self._outbox.delivery, delivery_id, webhook_id)
        if row is None:
            raise NotFound(f"There is no delivery {delivery_id[:64]}.")
        changes = {"due_at": self._clock(), "delivered_at": None}
        await run_in_threadpool(self._outbox.write, delivery_id, changes)
        self.wake()
        return _delivery(DeliveryRow(**{**row.model_dump(), **changes}))

    async def _mine(self, user_id: str, webhook_id: str) -> WebhookRow:
        row = await run_in_threadpool(self._outbox.webhook, webhook_id, user_id)
        if row is None:
            raise NotFound(f"There is no webhook {webhook_id[:64]}.")
        return row

    # ── the loop ────────────────────────────────────────────────────────────────────────────────

    def wake(self) -> None:
        """Sends what is due at once."""
        self._woken.set()

    def close(self) -> None:
        """Lets `run` return; running calls are given up, and made again later."""
        self._closed = True
        self._woken.set()

    async def run(self) -> None:
        """Sends what is due until closed."""
        while not self._closed:
            self._woken.clear()
            try:
                await self._send_due()
            except Exception:
                # The loop outlives any error of the database.
                log.exception("webhooks_failed")
            try:
                await asyncio.wait_for(self._woken.wait(), 1.0)
            except TimeoutError:
                continue
        calls = list(self._calling)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _send_due(self) -> None:
        free = AT_ONCE - len(self._calling)
        calls = Counter(self._calling.values())
        busy = [whom for whom, count in calls.items() if count >= AT_ONCE_EACH]
        if not free:
            return
        for row in await run_in_threadpool(self._outbox.due, self._clock(), free, busy):
            if calls[row.webhook_id] >= AT_ONCE_EACH:
                continue
            # If the broker dies during the call, the message is due again then.
            until = self._clock() + int(2 * CALL_SECONDS * 1000)
            if await run_in_threadpool(self._outbox.claim, row, until):
                call = asyncio.create_task(self._deliver(row, until))
                self._calling[call] = row.webhook_id
                calls[row.webhook_id] += 1
                call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        del self._calling[call]
        # Other messages may have waited for this call.
        self._woken.set()

    async def _deliver(self, row: DeliveryRow, claimed: int) -> None:
        try:
            webhook = await run_in_threadpool(self._outbox.webhook, row.webhook_id)
            # Webhooks are disabled, never deleted.
            assert webhook is not None  # noqa: S101
            if webhook.disabled_at is not None:
                await run_in_threadpool(self._outbox.write, row.id, {"due_at": None})
                return
            at = self._clock()
            status, detail = await self._call(webhook, row)
            made = HookTry(at=iso(at), status=status, detail=detail)
            await run_in_threadpool(self._conclude, webhook, row, claimed, made)
        except Exception:
            log.exception("delivery_failed", delivery_id=row.id, job_id=row.job_id)

    def _conclude(self, webhook: WebhookRow, row: DeliveryRow, claimed: int, made: HookTry) -> None:
        done = made.status is not None and 200 <= made.status < 300
        # The receiver wants no more calls.
        gone = made.status == httpx.codes.GONE
        if gone:
            self._outbox.change(webhook.id, {"disabled_at": self._clock()})

        outcome = "delivered" if done else "failed"

        def follows(tries: int) -> dict[str, int | None]:
            nonlocal outcome
            if done or gone or tries > len(AGAIN_SECONDS):
                outcome = "delivered" if done else "given_up"
                return {"due_at": None, "delivered_at": self._clock() if done else None}
            wait = AGAIN_SECONDS[tries - 1] * random.uniform(0.9, 1.1)  # noqa: S311
            return {"due_at": self._clock() + int(wait * 1000), "delivered_at": None}

        self._outbox.conclude(row.id, claimed, made.model_dump(), follows)
        self._on_call(outcome)
        log.info("webhook_called", delivery_id=row.id, job_id=row.job_id, status=made.status)

    async def _call(self, webhook: WebhookRow, row: DeliveryRow) -> tuple[int | None, str]:
        """Makes one call; returns the answer's status, or None, and a sentence."""
        try:
            async with asyncio.timeout(CALL_SECONDS):
                address = await self._address(webhook.url)
                url = httpx.URL(webhook.url)
                headers = self._signed(webhook, row) | {"Host": url.netloc.decode()}
                # Connects to the checked address, and verifies the certificate of the name.
                request = self._http.build_request(
                    "POST",
                    url.copy_with(host=address),
                    content=row.body,
                    headers=headers,
                    extensions={"sni_hostname": url.host},
                )
                reply = await self._http.send(request, stream=True)
                # The answer's body is not read.
                await reply.aclose()
        except Refused as error:
            return None, str(error)
        except (httpx.HTTPError, TimeoutError, OSError) as error:
            return None, f"no answer: {type(error).__name__}"
        if reply.is_redirect:
            return reply.status_code, "redirects are not followed; register the new address"
        return reply.status_code, "delivered" if reply.is_success else "refused"

    def _signed(self, webhook: WebhookRow, row: DeliveryRow) -> dict[str, str]:
        now = datetime.fromtimestamp(self._clock() // 1000, UTC)
        valid, rotated_at = [webhook.secret], webhook.rotated_at
        if webhook.former_secret and rotated_at and self._clock() - rotated_at < DAY_MS:
            valid.append(webhook.former_secret)
        signatures = [Webhook(secret).sign(row.id, now, row.body) for secret in valid]
        return {
            "Content-Type": "application/json",
            "User-Agent": "reelbroker",
            "webhook-id": row.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(signatures),
        }

    async def _address(self, target: str) -> str:
        """Returns the address to connect to, or raises Refused."""
        try:
            url = httpx.URL(target)
            host = url.host
        except (httpx.InvalidURL, UnicodeError):
            raise Refused("this is no URL of a host") from None
        if self._private:
            return host
        if url.scheme != "https" or url.port not in (None, 443):
            raise Refused("a webhook must be https, on port 443")
        try:
            addresses = await self._resolve(host, 443)
        except (OSError, UnicodeError):
            raise Refused(f"{host} cannot be resolved") from None
        if not addresses or not all(_is_public(address) for address in addresses):
            raise Refused(f"{host} is not a public address")
        return addresses[0]


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if inner := ip.ipv4_mapped or ip.sixtofour:
            return _is_public(str(inner))
        if ip not in _INTERNET:
            return False
    return ip.is_global and not ip.is_multicast


def _new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(24)).decode()


def _shown(row: WebhookRow) -> dict[str, object]:
    return {
        "id": row.id,
        "url": row.url,
        "kinds": [HookKind(kind) for kind in row.kinds.split()],
        "created_at": iso(row.created_at),
        "disabled_at": iso(row.disabled_at) if row.disabled_at else None,
    }


def _with_secret(row: WebhookRow) -> WebhookSecret:
    return WebhookSecret.model_validate(_shown(row) | {"secret": row.secret})


def _delivery(row: DeliveryRow) -> DeliveryView:
    return DeliveryView(
        id=row.id,
        webhook_id=row.webhook_id,
        job_id=row.job_id,
        kind=HookKind(row.kind),
        created_at=iso(row.created_at),
        delivered_at=iso(row.delivered_at) if row.delivered_at else None,
        next_try_at=iso(row.due_at) if row.due_at else None,
        tries=[HookTry.model_validate(made) for made in json.loads(row.tries)],
    )
