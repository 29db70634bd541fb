"""Addresses without the passwords that people put into them."""

import re

_HIDDEN = "***"
_PATTERNS = (
    # scheme://user:password@host; an unencoded password may hold any sign but a space.
    (re.compile(r"([A-Za-z][\w+.-]*://)[^\s]*@"), rf"\1{_HIDDEN}@"),
    # The same without its scheme.
    (re.compile(r"(?<![\w*])[^\s:/@'\"=,]+:[^\s:/@'\",]+@"), f"{_HIDDEN}@"),
    # ?token=..., &password=..., and the same as a word of its own.
    (
        re.compile(
            r"((?:^|[?&;\s'\"])[\w.-]*(?:token|secret|passw(?:or)?d|pwd|signature|credential|api_?key|access_?key)[\w.-]*=)"
            r"[^&;\s#'\"]+",
            re.IGNORECASE,
        ),
        rf"\1{_HIDDEN}",
    ),
)


def without_secrets(text: str) -> str:
    """The text with user names and passwords of addresses, and tokens in their queries, replaced by ***."""
    for pattern, shown in _PATTERNS:
        text = pattern.sub(shown, text)
    return text
