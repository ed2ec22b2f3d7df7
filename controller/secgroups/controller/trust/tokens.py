"""The text of bearer tokens: an id, by which a token is found, and 256 random bits, of which only a hash is kept.

A slow hash is for passwords that people think of; nobody guesses 256 bits.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

_SECRET_BYTES = 32
_FORM = re.compile(r"sgt_(?P<id>[0-9a-f]{16})_(?P<secret>[A-Za-z0-9_-]{43})")


def new_token() -> tuple[str, str, bytes]:
    """Return the id, the text and the hash of a new token."""
    token_id = secrets.token_hex(8)
    text = f"sgt_{token_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return token_id, text, hash_of(text)


def hash_of(text: str) -> bytes:
    """Return what is kept of a token."""
    return hashlib.sha256(text.encode()).digest()


def find_id(text: str) -> str | None:
    """Return the id in a token's text, None if it has not the form of one."""
    found = _FORM.fullmatch(text)
    return found["id"] if found else None


def matches(text: str, kept: bytes) -> bool:
    """Whether a text is that of the token of which ``kept`` is the hash; in the same time, however much of it is right."""
    return hmac.compare_digest(hash_of(text), kept)
