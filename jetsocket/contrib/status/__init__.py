"""A page that shows what the pools of a process do, or of all workers of a server: a WSGI application.

`app` makes it. Where workers share a directory, `publish` has this one write there what it does, `read` reads
what all do, and `as_text` makes lines of it for a terminal.
"""

from jetsocket.contrib.status.board import publish
from jetsocket.contrib.status.directory import read
from jetsocket.contrib.status.lines import as_text
from jetsocket.contrib.status.wsgi import app

__all__ = ["app", "as_text", "publish", "read"]
