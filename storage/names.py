"""Names: which may become files, one rule wherever one is given; and what a metric is called."""

import re
import unicodedata

LONGEST = 120
# What the longest name of a file may have in most filesystems, less what is put behind one.
_BYTES = 200
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def wrong_name(name: str) -> str:
    """What keeps a name from being the name of one file or folder on any system, or nothing.

    Quotes, spaces within and the letters of any language are fine.
    """
    if not name.strip():
        return "it is empty"
    if "/" in name or "\\" in name:
        return "it is a path: leave slashes out, and say where with --out"
    if any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in name):
        return "it holds a line break or another control character"
    if name.startswith(".") or name.endswith(".") or name != name.strip():
        return "it begins or ends with a dot or a space"
    if _RESERVED.fullmatch(name):
        return "some systems keep that name for a device"
    if len(name) > LONGEST or len(name.encode()) > _BYTES:
        return f"it is longer than {LONGEST} characters or {_BYTES} bytes"
    return ""


def wrong_path(path: str) -> str:
    """The same for a name with folders before it, as artifacts have."""
    parts = path.split("/")
    return next((f"{part!r}: {wrong}" for part in parts if (wrong := wrong_name(part))), "")


def metric_name(metric: str, features: str) -> str:
    """A metric as tables call it: a Frechet distance by its feature space, as `fid-digits`, others likewise."""
    if metric == "frechet":
        return features or metric
    space = features.removeprefix("fid-")
    return f"{metric}-{space}" if space != features else metric
