"""What `manage.py check` says of ``settings.JETSOCKET``. No message shows a value: settings hold secrets."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Error

from jetsocket.contrib.django.pools import label, sections
from jetsocket.framework_settings import read_section
from jetsocket.interrupts import is_alarm

__all__ = ["TAG", "check_settings"]

TAG = "jetsocket"
"""`manage.py check --tag jetsocket`."""

_IDS = {
    "key": "jetsocket.E001",
    "config": "jetsocket.E002",
    "options": "jetsocket.E003",
    "value": "jetsocket.E004",
    "path": "jetsocket.E005",
}


def check_settings(app_configs: Any = None, **_: Any) -> list[CheckMessage]:
    """Say what is wrong with the settings of each pool; connects to nothing."""
    try:
        found = sections()
    except ValueError as error:
        if is_alarm(error):
            raise
        return [Error(str(error), id=_IDS["value"])]
    return [
        Error(fault.message, id=_IDS[fault.kind])
        for alias, section in found.items()
        for fault in read_section(section, label(alias), name=alias)[1]
    ]
