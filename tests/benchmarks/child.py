"""One measurement in a process of its own: `python -m tests.benchmarks.child REQUEST`, both ways in JSON."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from tests.benchmarks import crowds, machine
from tests.benchmarks.peers import OURS, Place, without_speed
from tests.benchmarks.registry import WORKS


def measure(request: dict[str, Any]) -> dict[str, float]:
    """Do what the request says."""
    machine.pin("client")
    place, work, seconds = Place(*request["place"]), request["work"], request["seconds"]
    if request["contender"] == OURS:
        without_speed()
    if work == "idle":
        return crowds.idle(place, request["count"], seconds)
    if work == "flat":
        return crowds.flat(place, request["counts"], seconds, by=request["by"])
    return WORKS[work].measure(request["contender"], place, seconds)


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))), flush=True)
    os._exit(0)  # no goodbyes: they are not what is measured
