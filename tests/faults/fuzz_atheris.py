"""Fuzzing that follows the coverage (https://github.com/google/atheris), for as long as it is given.

    python -m tests.faults.fuzz_atheris frames -max_total_time=60
    python -m tests.faults.fuzz_atheris frames crash-1f0c…    # again with the input that failed

The first argument names a target of fuzz_targets.py; the others are libFuzzer's.
"""

from __future__ import annotations

import contextlib
import sys
import zlib
from pathlib import Path

import atheris

HEAD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: {accept}\r\n"
)
DEFLATE = b"permessage-deflate; server_max_window_bits=12; server_no_context_takeover"


def _deflated(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-12)
    return stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH)[:-4]


# Where to begin: inputs that are well-formed, so that the first steps lead past the first checks.
SEEDS: dict[str, list[bytes]] = {
    "frames": [
        b"\x03\x01\x81\x05hello\x01\x03hel\x89\x02hi\x80\x02lo\x88\x05\x03\xe8bye",
        b"\x04\xff\x82\x7e\x01\x00" + bytes(256) + b"\x82\x7f\0\0\0\0\0\1\0\0" + bytes(65536),
        b"\x84\x03\xc1\x07" + _deflated(b"hello") + b"\xc2\x07",
    ],
    "head": [
        HEAD.replace(b"{accept}", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") + b"Sec-WebSocket-Extensions: " + DEFLATE,
        b"HTTP/1.1 302 Found\r\nLocation: https://h:8443/b;c?d=e\r\nContent-Length: 3",
    ],
    "upgrade": [
        HEAD + b"Sec-WebSocket-Extensions: " + DEFLATE + b"\r\n\r\n\xc1\x07" + _deflated(b"hello"),
        HEAD + b"Sec-WebSocket-Protocol: chat\r\nSet-Cookie: a=b\r\n\r\n\x81\x02hi\x89\x00\x88\x02\x03\xe8",
        b"HTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\nno!",
        b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n",
    ],
    "deflate": [DEFLATE + b"\0" + _deflated(b"hello" * 100) + b"\0\0\xff" + _deflated(bytes(2000))],
}


def main() -> None:
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=["jetsocket"]):
        from tests.faults.fuzz_targets import TARGETS
    corpora = [Path(argument) for argument in sys.argv[1:] if Path(argument).is_dir()]
    for number, seed in enumerate(SEEDS[name] if corpora else []):
        corpora[0].joinpath(f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, TARGETS[name])
    with contextlib.suppress(KeyboardInterrupt):
        atheris.Fuzz()


if __name__ == "__main__":
    main()
