"""How to connect, as the options say: what a pool's `manager_kwargs` take. Nothing is opened but files."""

from __future__ import annotations

import argparse
import ssl
from typing import Any

from jetsocket import uris
from jetsocket.cli.exits import UsageError, in_shell_words, parted
from jetsocket.manager_kwargs import Options

__all__ = ["manager_kwargs", "one_uri", "read_headers", "ssl_context"]


def one_uri(given: list[str]) -> tuple[uris.Target, str, list[str]]:
    """The URI, which comes first of what was given, and the rest.

    Raises:
        UsageError: There is none, or it is none.
    """
    if not given:
        raise UsageError("the URI is missing", "write ws://host/path or wss://host/path")
    uri, *rest = given
    try:
        return uris.parse(uri), uri, rest
    except ValueError as error:
        # The last semicolon parts them: the URI may have others.
        cause, _, remedy = in_shell_words(str(error)).rpartition("; ")
        raise UsageError(cause, remedy) from error


def only_uri(command: str, given: list[str], remedy: str = "") -> tuple[uris.Target, str]:
    """The URI, where a command takes nothing else.

    Raises:
        UsageError: As `one_uri`, or there is more; `remedy` says where that belongs.
    """
    target, uri, rest = one_uri(given)
    if rest:
        raise UsageError(f"{command} takes one URI, not {rest[0]!r} too", remedy)
    return target, uri


def manager_kwargs(options: argparse.Namespace) -> dict[str, Any]:
    """What a pool is to know.

    Raises:
        UsageError: One of them is wrong, or a file can't be read.
    """
    kwargs: dict[str, Any] = {
        "extra_headers": headers(options),
        "subprotocols": options.subprotocol,
        "origin": options.origin,
        "ssl_context": ssl_context(options),
        "server_hostname": options.server_hostname,
        "unix": options.unix,
        "compress": not options.no_compress,
        "connect_timeout": options.connect_timeout,
        "close_timeout": 2.0,
        "max_message_size": options.max_message_size,
    }
    if options.proxy is not None:
        kwargs["proxy"] = False if options.proxy in ("", "none") else options.proxy
    try:
        Options.from_kwargs(kwargs)
    except (ValueError, TypeError, ImportError) as error:
        raise UsageError(*parted(str(error))) from error
    return kwargs


def headers(options: argparse.Namespace) -> list[tuple[str, str]]:
    """The headers of the files, then those of the command line."""
    pairs: list[tuple[str, str]] = []
    for path in options.header_file:
        pairs += read_headers(path)
    # What has no colon may be a secret: it is named by its number.
    return pairs + [
        _header(text, f"header number {number} given with -H")
        for number, text in enumerate(options.header, 1)
    ]


def read_headers(path: str) -> list[tuple[str, str]]:
    """The headers in a file: `Name: value` a line; empty lines and those that begin with # don't count.

    Raises:
        UsageError: It can't be read, or has a line that is none. No value is quoted: it may be secret.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise UsageError(f"--header-file {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--header-file {path}: it is not UTF-8") from error
    numbered = ((number, line.strip()) for number, line in enumerate(lines, 1))
    return [
        _header(line, f"--header-file {path}, line {number}")
        for number, line in numbered
        if line and not line.startswith("#")
    ]


def _header(text: str, where: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise UsageError(f"{where}: a header is written 'Name: value'")
    return name.strip(), value.strip()


def ssl_context(options: argparse.Namespace) -> ssl.SSLContext | None:
    """What to trust and to show; None: as by default.

    Raises:
        UsageError: A file can't be read, or does not hold what it should.
    """
    if options.key is not None and options.cert is None:
        raise UsageError("--key needs --cert")
    if not (options.insecure or options.ca or options.cert):
        return None
    for name in ("ca", "cert", "key"):
        _check_readable(f"--{name}", getattr(options, name))
    try:
        context = ssl.create_default_context(cafile=options.ca)
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(
            f"--ca {options.ca}: {_why(error)}", "it has to be a PEM file of certificates"
        ) from error
    if options.insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if options.cert is not None:
        try:
            context.load_cert_chain(options.cert, options.key, password=_no_password)
        except OSError as error:
            named = f"--cert {options.cert}" + (f" --key {options.key}" if options.key else "")
            remedy = "the key has to be the certificate's, PEM, and without a password"
            raise UsageError(f"{named}: {_why(error)}", remedy) from error
    context.set_alpn_protocols(["http/1.1"])
    return context


def _check_readable(option: str, path: str | None) -> None:
    """OpenSSL does not say which of two files is not there."""
    if path is not None:
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise UsageError(f"{option} {path}: {_why(error)}", "give a PEM file that can be read") from error


def _no_password() -> str:
    """For a key that wants one: else OpenSSL would ask at the terminal."""
    return ""


def _why(error: OSError) -> str:
    return error.strerror or str(error)
