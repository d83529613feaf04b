"""Secrets do not reach what is written down: passwords in URLs, tokens, values of secret variables.

Everything that a person may publish goes through here: the manifest, the plan, results (and so every report),
events and errors. It is a net below code that should not hold secrets in the first place, and it knows only
what is listed.

A secret is no part of a recipe. What tells whether a folder's work fits a command (the identity of a run, the
hash of a cell's options) is made of redacted values too, without looking at the environment: so a plan on
disk needs no secret to be resumed, and a new token does not make anything again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["HIDDEN", "redact", "redact_text"]

HIDDEN = "[redacted]"

# user:password@ of a URL. The user goes too: tokens are often given as one.
_CREDENTIALS = re.compile(r"(?P<scheme>\b[a-zA-Z][a-zA-Z0-9+.-]{0,20}://)[^\s/@?#\"']+@")
_NAMES = (  # of a parameter, an option or a key; not per_token, tokens or author
    r"[\w.-]*(?:(?<!per[_-])token(?![s_])|secret|passw(?:or)?d|api[_-]?key|access[_-]?key|credential|signature"
    r"|authorization|auth(?![a-z]))[\w.-]*"
)
_PARAMETER = re.compile(rf"(?P<name>(?:[?&;]|--|\b){_NAMES})(?P<equals>\s*[=:]\s*)[^\s&\"',;}}]+", re.I)
_HEADER = re.compile(r"(?P<name>\b(?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{8,}")
# What the tokens of well-known services look like.
_TOKENS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}|AKIA[A-Z0-9]{12,}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})"
)
_SECRET_VARIABLE = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL|AUTH", re.I)
_SECRET_KEY = re.compile(rf"^{_NAMES}$", re.I)
_LEAST_LENGTH = 8
"""A shorter value of an environment variable would hide parts of ordinary words."""


def redact_text(text: str, *, environment: bool = True) -> str:
    """``text`` without the secrets that it holds; those that only the environment tells too, if asked."""
    for value in _environment_secrets() if environment else ():
        text = text.replace(value, HIDDEN)
    text = _CREDENTIALS.sub(rf"\g<scheme>{HIDDEN}@", text)
    text = _HEADER.sub(rf"\g<name>{HIDDEN}", text)
    text = _PARAMETER.sub(rf"\g<name>\g<equals>{HIDDEN}", text)
    return _TOKENS.sub(HIDDEN, text)


def redact(value: Any, *, environment: bool = True) -> Any:
    """JSON values with every text redacted, and whatever stands under a key that names a secret hidden."""
    if isinstance(value, str):
        return redact_text(value, environment=environment)
    if isinstance(value, Mapping):
        return {
            redact_text(key, environment=environment) if isinstance(key, str) else key: HIDDEN
            if _hides(key, item)
            else redact(item, environment=environment)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(item, environment=environment) for item in value]
    return value


def _hides(key: object, item: object) -> bool:
    if not isinstance(key, str) or item is None or isinstance(item, bool) or item in ("", [], {}):
        return False
    return bool(_SECRET_KEY.match(key))


def _environment_secrets() -> list[str]:
    """Values of the variables whose names say that they are secret, the longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name) and len(value) >= _LEAST_LENGTH and not os.path.exists(value)  # noqa: PTH110
    }
    return sorted(found, key=lambda value: (-len(value), value))
