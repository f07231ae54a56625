"""JSON Web Tokens of an identity provider, and the users that they name.

Each algorithm has its own kind of key, so that a token cannot choose how it is verified: HS256 uses
the secret of the settings, RS256 and ES256 the keys at the JWKS URL. `none` is refused.
"""

import hashlib
import re
from typing import Any

import jwt
import structlog

from broker.errors import Unavailable
from broker.settings import Settings
from broker.store.keys import Principal

log = structlog.get_logger(__name__)

ADMIN_SCOPE = "reelbroker:admin"
LEEWAY_SECONDS = 10
HASHED = "u-"
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,64}")


class InvalidToken(Exception):
    """The token does not name a user; the message states why."""


class TokenVerifier:
    """Verifies signature, times, audience and issuer. Blocks while it fetches keys."""

    def __init__(self, settings: Settings) -> None:
        self._secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret else None
        self._keys = (
            jwt.PyJWKClient(settings.jwt_jwks_url, lifespan=300, timeout=5)
            if settings.jwt_jwks_url
            else None
        )
        self._audience = settings.jwt_audience
        self._issuer = settings.jwt_issuer
        self._user_claim = settings.jwt_user_claim

    @property
    def fetches(self) -> bool:
        """Whether `verify` may wait for the network."""
        return self._keys is not None

    def verify(self, token: str) -> Principal:
        """Returns the token's user.

        Raises:
            InvalidToken: the token is not valid.
            Unavailable: its key cannot be fetched.
        """
        try:
            claims = self._claims(token)
        except jwt.PyJWKClientConnectionError as error:
            log.error("jwks_unreachable", error=str(error))
            sentence = "The identity provider's keys cannot be fetched now."
            raise Unavailable("identity_provider_unavailable", sentence) from error
        # A key of another kind than the algorithm's raises TypeError, a header of brackets alone
        # RecursionError.
        except (jwt.PyJWTError, TypeError, ValueError, RecursionError) as error:
            raise InvalidToken(f"The token is not valid: {error}") from error
        subject = claims.get(self._user_claim)
        if not isinstance(subject, str) or not subject:
            raise InvalidToken(f"The token has no claim {self._user_claim!r}.")
        scopes = claims.get("scope", "")
        return Principal(
            as_user_id(subject),
            admin=isinstance(scopes, str) and ADMIN_SCOPE in scopes.split(),
            until_ms=(int(claims["exp"]) + LEEWAY_SECONDS) * 1000,
        )

    def _claims(self, token: str) -> dict[str, Any]:
        algorithm = jwt.get_unverified_header(token).get("alg")
        if algorithm == "HS256" and self._secret is not None:
            key: Any = self._secret
        elif algorithm in ("RS256", "ES256") and self._keys is not None:
            key = self._keys.get_signing_key_from_jwt(token).key
        else:
            raise jwt.InvalidAlgorithmError(
                f"the algorithm {str(algorithm)[:20]!r} is not accepted"
            )
        return jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=self._audience,
            issuer=self._issuer,
            leeway=LEEWAY_SECONDS,
            options={"require": ["exp"]},
        )


def as_user_id(subject: str) -> str:
    """Returns the user id for a subject: the subject, or its hash where it cannot name a folder.

    A subject that looks like such a hash is hashed too, so that no two subjects share an id.
    """
    if _PLAIN.fullmatch(subject) and not subject.startswith(HASHED):
        return subject
    return HASHED + hashlib.sha256(subject.encode()).hexdigest()[:40]
