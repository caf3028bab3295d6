"""Passwords in URIs, kept out of everything that is printed or written down."""

from __future__ import annotations

import re
from urllib.parse import unquote

_PASSWORD = re.compile(r"(://[^\s:/?#@]*):(?!\d+(?:[/?#\s]|$))\S*@")
_SECRET = r"password|passwd|pwd|secret_key|account_key|secret|token"
_PASSWORD_OPTION = re.compile(rf"(?i)([?&](?:{_SECRET})=)[^&\s]*")
# An address among the options of another one, such as ``endpoint_override=USER:PASSWORD@HOST``.
_INNER_PASSWORD = re.compile(r"([?&]\w+=[^\s:/?#@&]*):[^\s@&]*@")
_WRITTEN_PASSWORD = re.compile(r"://[^\s:/?#@]*:(.*)@")
_WRITTEN_OPTION = re.compile(rf"(?i)[?&](?:{_SECRET})=([^&\s]*)")


def redact(text: str, uri: str = "") -> str:
    """`text`, a URI or a message that holds some, with every password in a URI replaced by ``***``.

    The password of `uri` is replaced wherever it stands, also where a library has taken it out of the URI.
    """
    for password in _passwords(uri):
        text = text.replace(password, "***")
    if "://" not in text and "=" not in text:
        return text  # most parameters and tags, of which there are many
    text = _INNER_PASSWORD.sub(r"\1:***@", _PASSWORD.sub(r"\1:***@", text))
    return _PASSWORD_OPTION.sub(r"\1***", text)


def _passwords(uri: str) -> list[str]:
    """The passwords in `uri`, as written and as meant; the longest first, and none that words contain."""
    written = [match[1] for match in (*_WRITTEN_PASSWORD.finditer(uri), *_WRITTEN_OPTION.finditer(uri))]
    return sorted((p for p in {*written, *map(unquote, written)} if len(p) > 3), key=len, reverse=True)
