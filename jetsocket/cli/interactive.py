"""A line editor beside what comes: `listen`, when both ends are terminals."""

from __future__ import annotations

import _thread
import os
import signal
import threading
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from jetsocket.cli.exits import OK, Terminated, UsageError, outcome_of
from jetsocket.cli.output import Terminal
from jetsocket.cli.reading import from_argument

__all__ = ["Editor", "Listener"]

_PROMPT = "> "
_CLEAR_LINE = b"\r\x1b[K"


class Listener(Protocol):
    """What the editor needs of what listens."""

    def run(self) -> int:
        """Print what comes; the exit code."""

    def stop(self) -> None:
        """End `run`, with a close frame."""

    def send(self, message: str | bytes) -> None:
        """Send a message."""


class Editor:
    """Reads lines in the main thread, with history, while another one prints what comes above them."""

    def __init__(self, listener: Listener, terminal: Terminal, *, as_base64: bool) -> None:
        """Send there what is typed."""
        self._listener, self._terminal, self._base64 = listener, terminal, as_base64
        self._over = threading.Event()
        self._code = OK
        self._failure: BaseException | None = None

    def run(self) -> int:
        """Until Ctrl-D, or the connection ends; the exit code."""
        read = _with_prompt_toolkit(self._terminal) or _with_readline(self._terminal)
        self._terminal.note("what you type is sent, line by line; Ctrl-D ends it", "dim")
        listening = threading.Thread(target=self._listen, name="listen", daemon=True)
        listening.start()
        try:
            self._read_all(read)
        finally:
            self._terminal.intercept = None
            self._over.set()
            self._listener.stop()
            listening.join()
        if self._failure is not None:
            raise self._failure
        return self._code

    def _listen(self) -> None:
        try:
            self._code = self._listener.run()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self._failure = error
        if not self._over.is_set():
            self._over.set()
            # Nothing else gets a thread out of the line editor.
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            else:  # Windows: it is seen at the next key
                _thread.interrupt_main()

    def _read_all(self, read: Callable[[], str]) -> None:
        while not self._over.is_set():
            try:
                line = read()
            except EOFError:
                return
            except KeyboardInterrupt as interrupt:
                if self._over.is_set() and not isinstance(interrupt, Terminated):
                    return
                raise
            try:
                self._listener.send(from_argument(line, as_base64=self._base64))
            except UsageError as error:
                self._terminal.fail(outcome_of(error))


def _with_readline(terminal: Terminal) -> Callable[[], str]:
    """Lines as Python's own `input` reads them; what comes is put above the one being typed."""
    try:
        import readline
    except ImportError:  # Windows
        return lambda: input(_PROMPT)
    out: Any = getattr(terminal.streams.stdout, "buffer", None)
    clears = os.environ.get("TERM", "dumb") != "dumb"

    asking = False  # whether there is a prompt to put it above

    def put_above(data: bytes) -> None:
        if asking:
            typed = readline.get_line_buffer().encode(errors="replace")
            data = (_CLEAR_LINE if clears else b"\n") + data + _PROMPT.encode() + typed
        out.write(data)
        out.flush()

    def read() -> str:
        nonlocal asking
        asking = True
        try:
            return input(_PROMPT)
        finally:
            asking = False

    terminal.intercept = put_above
    return read


def _with_prompt_toolkit(terminal: Terminal) -> Callable[[], str] | None:
    """Lines as prompt_toolkit reads them; None without it."""
    try:
        session: Any = import_module("prompt_toolkit").PromptSession(reserve_space_for_menu=0)
        proxy: Any = import_module("prompt_toolkit.patch_stdout").StdoutProxy(raw=True)
    except ImportError:
        return None

    def put_above(data: bytes) -> None:
        proxy.write(data.decode("utf-8", "replace"))
        proxy.flush()

    terminal.intercept = put_above
    return lambda: str(session.prompt(_PROMPT))
