"""Who is asking: keys, tokens, and a broker that asks nobody but listens to this machine alone."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from broker.services.tokens import as_user_id
from broker.store import keys as credentials
from tests.broker.api.calls import JOB, on_one_database
from tests.broker.provider import Provider

SECRET = "s" * 32
RSA, OTHER = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 2048)
CURVE = ec.generate_private_key(ec.SECP256R1())


def claims(**changed):
    """A good token's claims, but for what is changed; None leaves one out."""
    good = {
        "sub": "alice",
        "exp": time.time() + 60,
        "aud": "reelbroker",
        "iss": "https://id.example",
    }
    return {name: value for name, value in (good | changed).items() if value is not None}


@pytest.fixture
def jwks():
    """An identity provider's keys at a URL."""

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self):
            keys = [
                jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True)
                | {"kid": "r", "use": "sig"},
                jwt.algorithms.ECAlgorithm.to_jwk(CURVE.public_key(), as_dict=True)
                | {"kid": "e", "use": "sig"},
            ]
            body = json.dumps({"keys": keys}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Keys) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/keys"
        server.shutdown()
        thread.join()


@pytest.fixture
async def client(settings, running, jwks):
    """A client of a broker that takes tokens of either kind."""
    made = settings(
        REELBROKER_JWT_SECRET=SECRET,
        REELBROKER_JWT_JWKS_URL=jwks,
        REELBROKER_JWT_AUDIENCE="reelbroker",
        REELBROKER_JWT_ISSUER="https://id.example",
    )
    async with running(made, Provider()) as client:
        yield client


async def ask(client, token, method="GET", path="/api/jobs", **options):
    return await client.request(
        method, path, headers={"Authorization": f"Bearer {token}"}, **options
    )


@on_one_database
@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(SECRET, "HS256", None), (RSA, "RS256", "r"), (CURVE, "ES256", "e")],
)
async def test_a_token_gives_the_user(client, key, algorithm, kid):
    """By its subject, whatever that looks like; the jobs are that user's."""
    headers = {"kid": kid} if kid else {}
    for subject in ("alice", "auth0|42", "Ägidius/../b", as_user_id("auth0|42")):
        token = jwt.encode(claims(sub=subject), key, algorithm, headers=headers)
        assert (await ask(client, token, "POST", json=JOB)).status_code == 202
        assert len((await ask(client, token)).json()["jobs"]) == 1
        assert (await ask(client, token, "GET", "/api/keys")).status_code == 403
    admin = jwt.encode(claims(scope="openid reelbroker:admin"), key, algorithm, headers=headers)
    assert (await ask(client, admin, "GET", "/api/keys")).status_code == 200


@on_one_database
@pytest.mark.parametrize(
    "token",
    [
        pytest.param(lambda: jwt.encode(claims(), None, "none"), id="none"),
        pytest.param(lambda: jwt.encode(claims(), "x" * 32, "HS256"), id="foreign-secret"),
        pytest.param(
            lambda: jwt.encode(claims(), OTHER, "RS256", headers={"kid": "r"}), id="foreign-key"
        ),
        pytest.param(
            lambda: jwt.encode(claims(), RSA, "RS256", headers={"kid": "x"}), id="unknown-key"
        ),
        pytest.param(lambda: jwt.encode(claims(), "s" * 64, "HS512"), id="other-algorithm"),
        pytest.param(lambda: jwt.encode(claims(aud="other"), SECRET), id="wrong-audience"),
        pytest.param(lambda: jwt.encode(claims(aud=None), SECRET), id="no-audience"),
        pytest.param(lambda: jwt.encode(claims(iss="https://evil"), SECRET), id="wrong-issuer"),
        pytest.param(lambda: jwt.encode(claims(exp=time.time() - 60), SECRET), id="expired"),
        pytest.param(lambda: jwt.encode(claims(exp=None), SECRET), id="without-end"),
        pytest.param(lambda: jwt.encode(claims(sub=None), SECRET), id="nobody"),
        pytest.param(lambda: jwt.encode(claims(nbf=time.time() + 600), SECRET), id="not-yet"),
        pytest.param(
            lambda: jwt.encode(claims(), CURVE, "ES256", headers={"kid": "r"}),
            id="key-of-another-kind",
        ),
        pytest.param(lambda: "a.b.c", id="nonsense"),
    ],
)
async def test_a_bad_token_lets_nobody_in(client, token):
    """401, and nothing is stored."""
    reply = await ask(client, token(), "POST", json=JOB)
    assert (reply.status_code, reply.json()["code"]) == (401, "unauthorized")


@on_one_database
async def test_an_identity_provider_that_is_away_is_not_the_users_fault(settings, running):
    """503 to try again, and not 401, on which a client would log its user out."""
    made = settings(REELBROKER_JWT_JWKS_URL="http://127.0.0.1:9/keys")
    async with running(made, Provider()) as client:
        reply = await ask(client, jwt.encode(claims(), RSA, "RS256", headers={"kid": "r"}))
        assert (reply.status_code, reply.json()["code"]) == (503, "identity_provider_unavailable")
        assert (await client.get("/api/jobs")).status_code == 200


@on_one_database
async def test_a_public_key_is_no_secret(client):
    """A token signed by HMAC with what everybody can fetch."""
    import base64
    import hashlib
    import hmac

    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    parts = [
        json.dumps(part).encode() for part in ({"alg": "HS256", "kid": "r", "typ": "JWT"}, claims())
    ]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    mark = base64.urlsafe_b64encode(hmac.digest(pem, signed, hashlib.sha256)).rstrip(b"=")
    assert (await ask(client, (signed + b"." + mark).decode())).status_code == 401


async def test_a_key_is_shown_once_and_can_be_revoked(client):
    """Only a hash is kept; a revoked one lets nobody in from then on."""
    made = (await client.post("/api/keys", json={"user_id": "carol", "name": "web"})).json()
    assert (await ask(client, made["key"])).status_code == 200
    me = await client.get("/api/me", headers={"Authorization": f"Bearer {made['key']}"})
    assert me.json() == {"user_id": "carol", "admin": False}
    listed = (await client.get("/api/keys")).text
    assert made["id"] in listed
    assert made["key"] not in listed
    assert (await client.delete(f"/api/keys/{made['id']}")).status_code == 204
    assert (await ask(client, made["key"])).status_code == 401
    assert (await client.delete(f"/api/keys/{made['id']}")).status_code == 204
    assert (await client.delete("/api/keys/none")).status_code == 404


@on_one_database
async def test_a_ticket_is_good_for_a_minute(client, monkeypatch):
    """Also if nobody has used it."""
    job = (await client.post("/api/jobs", json=JOB)).json()
    ticket = (await client.post("/api/tickets")).json()
    assert ticket["expires_in_seconds"] == 60
    now = credentials.now_ms()
    monkeypatch.setattr(credentials, "now_ms", lambda: now + 61_000)
    query = {"ticket": ticket["ticket"]}
    late = await client.get(job["urls"]["events"], params=query, headers={"Authorization": ""})
    assert late.status_code == 401


@on_one_database
async def test_without_any_key_this_machine_is_the_user(settings, running):
    """Not a page of elsewhere that a browser here shows, nor a name of elsewhere that leads
    here.
    """
    async with running(settings(REELBROKER_API_KEY=None), Provider()) as client:
        client.headers.pop("authorization")
        here = {"Host": "127.0.0.1:8000"}
        assert (await client.get("/api/keys", headers=here)).status_code == 200
        assert (
            await client.get("/api/jobs", headers=here | {"Origin": "http://localhost:5173"})
        ).status_code == 200
        for wrong in (
            {"Host": "rebound.example"},
            here | {"Origin": "https://evil.example"},
            here | {"Origin": "null"},
        ):
            assert (await client.post("/api/jobs", json=JOB, headers=wrong)).status_code == 401


@on_one_database
async def test_pages_of_known_origins_may_call_from_a_browser(settings, running):
    """With the headers that they need, and those that they may read; others get none."""
    made = settings(REELBROKER_CORS_ORIGINS="https://app.example, http://localhost:5173")
    ask_first = {
        "Access-Control-Request-Method": "PUT",
        "Access-Control-Request-Headers": "authorization,idempotency-key",
    }
    async with running(made, Provider()) as client:
        for origin in ("https://app.example", "http://localhost:5173"):
            told = await client.options(
                "/api/jobs", headers=ask_first | {"Origin": origin, "Authorization": ""}
            )
            assert (told.status_code, told.headers["access-control-allow-origin"]) == (200, origin)
            got = await client.get("/api/jobs", headers={"Origin": origin})
            assert "ETag" in got.headers["access-control-expose-headers"]
        got = await client.get("/api/jobs", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in got.headers


@pytest.mark.abuse
@on_one_database
async def test_a_token_of_brackets_is_no_token(client):
    """401, however deep its header is nested."""
    header = base64.urlsafe_b64encode(b"[" * 40_000).decode().rstrip("=")
    reply = await ask(client, f"{header}.e30.e30")
    assert (reply.status_code, len(reply.content) < 1000) == (401, True)
