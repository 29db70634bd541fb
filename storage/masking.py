"""Addresses without the passwords that people put into them, paths without people's names."""

import json
import re
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

_HIDDEN = "***"
# A shorter one would be found in words that have nothing to do with it.
_SHORTEST = 4
# NAME= in a query, or as a word of its own, and what stands after it.
_NAME = (
    r"((?:^|[?&;\s'\"])(?:[\w.-]*(?:token|secret|passw(?:or)?d|passphrase|pwd|signature|credential|api_?key|access_?key|"
    r"private_?key|authorization)[\w.-]*|pass|pw|sig|sas|key|auth)=)"
)
_VALUE = r"([^&;\s#'\"]+)"
_QUERY = re.compile(_NAME + _VALUE, re.IGNORECASE)
_PATTERNS = (
    # scheme://user:password@host; an unencoded password may hold any sign but a space.
    (re.compile(r"([A-Za-z][\w+.-]*://)[^\s]*@"), rf"\1{_HIDDEN}@"),
    # The same without its scheme.
    (re.compile(r"(?<![\w*])[^\s:/@'\"=,]+:[^\s:/@'\",]+@"), f"{_HIDDEN}@"),
    (_QUERY, rf"\1{_HIDDEN}"),
)


def without_secrets(text: str, address: str = "") -> str:
    """The text with user names and passwords of addresses, and tokens in their queries, replaced by ***.

    What is secret in `address` is replaced wherever and however it is written, as a library's messages quote it.
    """
    for secret in sorted(_secrets(address), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text


def without_home(text: str) -> str:
    """The text with ~ in place of this user's home folder, whose name is often a person's."""
    home = str(Path.home()).rstrip("/")
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if home else text


def told_text(text: str) -> str:
    """Prose that is kept: without secrets and without the home folder."""
    return without_home(without_secrets(text))


def masked_argument(argument: str) -> str:
    """One argument of a command line, which is an address as a whole, whatever signs are in its password."""
    scheme, mark, rest = argument.partition("://")
    if mark and "@" in rest:
        argument = f"{scheme}{mark}{_HIDDEN}@{rest.rpartition('@')[2]}"
    return without_secrets(argument)


def _secrets(address: str) -> set[str]:
    """Passwords and tokens of an address, as they are written, decoded and encoded."""
    _, mark, rest = address.partition("://")
    found = {value for _, value in _QUERY.findall(address)}
    if mark and "@" in rest:
        user, _, password = rest.rpartition("@")[0].partition(":")
        # A name alone is a token; a name with a password is hidden by the patterns where it stands in an address.
        found.add(password or user)
    plain = {form for secret in found for form in (secret, unquote(secret), quote(secret, ""), quote_plus(secret))}
    forms = plain | {repr(form)[1:-1] for form in plain} | {json.dumps(form)[1:-1] for form in plain}
    return {form for form in forms if len(form) >= _SHORTEST}
