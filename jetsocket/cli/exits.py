"""What an error means to a shell: exit code, cause and remedy. Decisions only, nothing is printed here."""

from __future__ import annotations

import re
import socket
import ssl
from dataclasses import dataclass
from typing import Any

from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    DecodeError,
    HandshakeError,
    JetSocketError,
    MessageTooBigError,
    PoolExhaustedError,
    ProtocolError,
    ReplyError,
    TimeoutError,
)

__all__ = [
    "CLOSED",
    "FAILED",
    "INTERRUPTED",
    "NO_WEBSOCKET",
    "OK",
    "PIPE_CLOSED",
    "TERMINATED",
    "TIMEOUT",
    "UNREACHABLE",
    "USAGE",
    "Outcome",
    "Terminated",
    "UsageError",
    "close_outcome",
    "code_of",
    "outcome_of",
]

OK = 0
FAILED = 1  # a threshold, or the reply to --jsonrpc is an error
USAGE = 2
UNREACHABLE = 3  # DNS, TCP, TLS, proxy
NO_WEBSOCKET = 4  # reached, but no WebSocket there, or refused
TIMEOUT = 5
CLOSED = 6  # abnormally
INTERRUPTED = 130
PIPE_CLOSED = 141
TERMINATED = 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: the command ends as it does at Ctrl-C, with a close frame, and with a code of its own."""

    exit = TERMINATED


def code_of(interrupt: KeyboardInterrupt) -> int:
    """The exit code after Ctrl-C or SIGTERM."""
    return TERMINATED if isinstance(interrupt, Terminated) else INTERRUPTED


class UsageError(Exception):
    """The command line can't be done; nothing was opened."""

    def __init__(self, cause: str, remedy: str = "") -> None:
        """Say what is wrong with it, and what to write instead."""
        super().__init__(cause)
        self.remedy = remedy


@dataclass(frozen=True)
class Outcome:
    """How a command failed.

    Attributes:
        exit: The exit code.
        cause: What happened, in one line.
        remedy: What to do about it; "" if there is nothing to say.
        status: The HTTP status, if a server has answered with one.
        code: The close code, or the code of an error reply.
        data: What an error reply says besides.
    """

    exit: int
    cause: str
    remedy: str = ""
    status: int | None = None
    code: int | str | None = None
    data: Any = None

    def record(self) -> dict[str, Any]:
        """As `--json` shows it."""
        shown: dict[str, Any] = {
            "type": "error",
            "exit": self.exit,
            "status": self.status,
            "cause": self.cause,
            "remedy": self.remedy,
        }
        if self.code is not None:
            shown["code"] = self.code
        if self.data is not None:
            shown["data"] = self.data
        return shown


_UNTRUSTED = frozenset({2, 18, 19, 20, 21})  # X509_verify_cert: an authority that is not known
_WRONG_NAME = frozenset({62, 64})
_EXPIRED = 10

_TRUST = "if it is to be trusted, give the certificate of its authority with --ca FILE; -k asks for none"
_NAME = "dial one of its names, or give the one that you expect with --server-hostname"
_MUTE = (
    "something listens there and does not speak: is it a WebSocket server, on this port, with ws:// (or wss://)?"
    " Allow more time with --connect-timeout"
)
_SLOW = "see whether it can be reached from here; allow more time with --connect-timeout"
_SECURE = "it speaks TLS: write wss:// in place of ws://"
_MAYBE_SECURE = "does it want wss:// in place of ws://?"
_PLAIN = "it does not speak TLS: write ws:// in place of wss://"
_MAYBE_PLAIN = "does it want ws:// in place of wss://?"


def outcome_of(error: BaseException) -> Outcome:
    """What an error means; other errors than the library's and the system's are not for here."""
    if isinstance(error, UsageError):
        return Outcome(USAGE, str(error), error.remedy)
    if isinstance(error, PoolExhaustedError) and isinstance(error.last_connect_error, JetSocketError):
        return outcome_of(error.last_connect_error)
    cause, advice = parted(str(error))
    if isinstance(error, ReplyError):
        return Outcome(FAILED, f"{error}", code=error.code, data=error.data)
    if isinstance(error, HandshakeError):
        return Outcome(NO_WEBSOCKET, cause, _of_handshake(cause, advice), status=error.status_code)
    if isinstance(error, (ConnectionClosedError, ProtocolError, MessageTooBigError)):
        return Outcome(CLOSED, cause, advice or _of_close(error.code), code=error.code)
    if isinstance(error, PoolExhaustedError):
        cause = cause.partition(" (")[0]  # figures of a pool, and what to set in it
    if isinstance(error, TimeoutError):
        return Outcome(TIMEOUT, cause, _of_timeout(error, advice))
    if isinstance(error, ConnectionError):
        return _of_connection(error, cause, advice)
    if isinstance(error, DecodeError):
        return Outcome(NO_WEBSOCKET, cause, advice or "what answers does not speak this protocol")
    if isinstance(error, ImportError):
        return Outcome(USAGE, cause, advice)
    if isinstance(error, OSError):
        return Outcome(USAGE, _of_file(error))
    return Outcome(USAGE, cause, advice)  # ValueError, TypeError


def close_outcome(code: int, reason: str) -> Outcome:
    """The end of a connection that was not orderly."""
    said = f' and says "{reason}"' if reason else ""
    what = (
        "the connection was lost without a close frame (1006)"
        if code == 1006
        else f"the server closed the connection with {code}{said}"
    )
    return Outcome(CLOSED, what, _of_close(code), code=code)


def _of_connection(error: ConnectionError, cause: str, advice: str) -> Outcome:
    behind = error.__cause__
    if isinstance(behind, ssl.SSLCertVerificationError):
        return Outcome(UNREACHABLE, cause, _of_certificate(behind, advice))
    if cause.startswith("no WebSocket at ") and not isinstance(behind, ssl.SSLError):
        return Outcome(NO_WEBSOCKET, cause, _of_handshake(cause, advice))
    if isinstance(behind, ssl.SSLError) and "ws://" in advice and "wss://" not in advice:
        return Outcome(UNREACHABLE, cause, _PLAIN)
    if isinstance(behind, socket.gaierror):
        return Outcome(UNREACHABLE, cause, advice or "is the name spelt right?")
    return Outcome(UNREACHABLE, cause, advice)


def _of_certificate(error: ssl.SSLCertVerificationError, advice: str) -> str:
    if error.verify_code in _UNTRUSTED:
        return _TRUST
    if error.verify_code in _WRONG_NAME:
        return _NAME
    if error.verify_code == _EXPIRED:
        return f"{advice}; -k goes on without checking it"
    return advice


def _of_handshake(cause: str, advice: str) -> str:
    if "seems to be TLS" in cause:
        return _SECURE
    if "subprotocol" in cause.lower():
        return "offer one that it knows with --subprotocol"
    if advice == "does it want wss://?":
        return _MAYBE_SECURE if "https" not in cause.lower() else _SECURE
    return advice


def _of_timeout(error: TimeoutError, advice: str) -> str:
    if error.operation == "connect":
        text = str(error)
        if "does it want ws://" in text:
            return _MAYBE_PLAIN
        return _MUTE if "upgrade request" in text or "TLS handshake" in text else _SLOW
    if error.operation in ("recv", "acquire"):
        return "the server sent no reply; allow more time with -t, or expect none with -n 0"
    return advice


def _of_close(code: int | None) -> str:
    if code == 1006:
        return "the server, or something on the way, dropped it; its log may say why"
    if code == 1008 or (code is not None and 3000 <= code < 5000):
        return "the server ended it by a rule of its own; does it want to be logged in (-H, --header-file)?"
    if code == 1011:
        return "the server failed; its log may say why"
    if code in (1012, 1013):
        return "it restarts or is busy; try again later"
    return ""


def _of_file(error: OSError) -> str:
    why = error.strerror or str(error)
    return f"{error.filename}: {why}" if error.filename is not None else why


# --- the library's words, in the shell's

_OPTIONS = {
    "extra_headers": "-H or --header-file",
    "ssl_context": "--ca",
    "subprotocols": "--subprotocol",
    "compress": "--no-compress",
}
_WORDS = (
    ('in the URI or in manager_kwargs["auth"] or ["extra_headers"]', "in the URI, or in -H or --header-file"),
    ('manager_kwargs["auth"] or ["extra_headers"]', "-H or --header-file"),
    ('manager_kwargs["compress"] = False leaves that out', "--no-compress leaves that out"),
    (
        "pass proxy=None in manager_kwargs, or True in place of its URL and list it in NO_PROXY",
        "give --proxy none",
    ),
    ("pass proxy=None in manager_kwargs", "give --proxy none"),
    ("it does not take the certificate that your SSLContext shows it", "it does not take your --cert"),
    (
        "it wants a certificate of yours: load one into your SSLContext",
        "it wants a certificate of yours: --cert",
    ),
    (
        "to trust another authority, pass an SSLContext that does as manager_kwargs['ssl_context']",
        _TRUST,
    ),
    ("; what is asked of it, manager_kwargs['ssl_context'] says", ""),
    (
        'offer ALPN http/1.1: pass an SSLContext as manager_kwargs["ssl_context"] after '
        'context.set_alpn_protocols(["http/1.1"])',
        "it may want ALPN http/1.1, which is offered with -k or --ca",
    ),
    (
        "does your SSLContext fit its versions and ciphers?",
        "do its versions and ciphers fit this machine's? Does it want a certificate of yours (--cert)?",
    ),
    ("that your SSLContext offers by ALPN", "that are offered by ALPN"),
    ("than your SSLContext allows", "than this machine allows"),
    ("more redirects than max_redirects allows", "it redirects again and again"),
    (
        "recv_raw() returns messages undecoded",
        "without --jsonrpc and --correlation messages are shown as they come",
    ),
    ("; send() sends anything as it is", ""),
    ("set manager_kwargs", "give manager_kwargs"),
    ('manager_kwargs: give "unix" or a "proxy" URL, not both', "give --unix or --proxy, not both"),
    ("max_message_size=", "--max-message-size "),
)
_WHERE = re.compile(r"(.*?)( \(at wss?://[^ ]*\))?", re.DOTALL)  # which connection it was
_NAMED = re.compile(r"""manager_kwargs\[["'](\w+)["']\]""")


def in_shell_words(text: str) -> str:
    """What the library says, with options of the command line in place of arguments of the pool."""
    for theirs, ours in _WORDS:
        text = text.replace(theirs, ours)
    return _NAMED.sub(lambda found: _OPTIONS.get(found[1], "--" + found[1].replace("_", "-")), text)


def parted(message: str) -> tuple[str, str]:
    """Cause and advice of a message of the library: they are parted by the first semicolon outside quotes."""
    message = in_shell_words(message)
    quoted = False
    for at, char in enumerate(message):
        if char == '"':
            quoted = not quoted
        elif char == ";" and not quoted and message[at : at + 2] == "; ":
            advice, where = _WHERE.fullmatch(message[at + 2 :]).groups("")  # type: ignore[union-attr]  # fits all
            return message[:at] + where, advice
    return message, ""
