"""How a path joins the request target of a base (RFC 3986 §5.2)."""

from __future__ import annotations

__all__ = ["joined"]


def joined(base: str, text: str) -> str:
    """Join a path, with or without a query, to a request target (RFC 3986 §5.2.2)."""
    if not text:
        return base
    base_path = base.partition("?")[0]
    path, mark, query = text.partition("?")
    if not path:
        path = base_path
    elif not path.startswith("/"):
        path = base_path[: base_path.rindex("/") + 1] + path
    return _without_dots(path) + mark + query


def _without_dots(path: str) -> str:
    """Resolve the segments ``.`` and ``..`` of an absolute path (RFC 3986 §5.2.4)."""
    segments = path.split("/")[1:]
    kept: list[str] = []
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/" + "/".join(kept)
