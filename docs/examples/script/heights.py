"""Asks a service how high blocks are, eight at a time over two connections: `python heights.py 21 22 23`.

Its settings are in the environment: HEIGHTS_BASE_URI, HEIGHTS_MAX_CONNECTIONS, …
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor

from jetsocket import ConnectionPool, JetSocketError

DEFAULTS = {
    "HEIGHTS_BASE_URI": "ws://localhost:8765",
    "HEIGHTS_MAX_CONNECTIONS": "2",
    "HEIGHTS_MAX_IN_FLIGHT": "4",
    "HEIGHTS_CORRELATION": "jetsocket.correlation.JsonRpc",
}


def main(arguments=None):
    """Print a line for each block; 1 if the service does not answer for one of them."""
    parser = argparse.ArgumentParser(description="Say how high blocks are.")
    parser.add_argument("blocks", metavar="BLOCK", type=int, nargs="+")
    blocks = parser.parse_args(arguments).blocks
    with (
        ConnectionPool.from_mapping({**DEFAULTS, **os.environ}, "HEIGHTS") as pool,
        ThreadPoolExecutor(8) as threads,
    ):

        def height(block):
            try:
                return pool.request("/", {"method": "height", "params": [block]}, timeout=5)["result"]
            except JetSocketError as error:
                return error

        code = 0
        for block, found in zip(blocks, threads.map(height, blocks), strict=True):
            if isinstance(found, JetSocketError):
                print(f"{block}: {found}", file=sys.stderr)
                code = 1
            else:
                print(block, found)
        return code


if __name__ == "__main__":
    sys.exit(main())
