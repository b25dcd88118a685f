"""`manage.py check` finds each kind of fault in the settings, and shows no value.

Also tests: `apps`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("django")
from django.core.checks import run_checks

Use = Callable[..., None]


def found() -> dict[str, str]:
    return {str(message.id): str(message.msg) for message in run_checks(tags=["jetsocket"])}


@pytest.mark.parametrize(
    ("section", "code", "told"),
    [
        ({"BASE_URL": "hidden"}, "E001", '"BASE_URI"'),
        ({"CONFIG": {"max_connection": 1}}, "E002", '"max_connections"'),
        ({"OPTIONS": {"connect_timeot": 1}}, "E003", "connect_timeout"),
        ({"CONFIG": {"max_connections": "hidden"}}, "E004", "max_connections"),
        ({"BASE_URI": "http://hidden"}, "E004", "BASE_URI"),
        ({"NAME": "hidden\nline"}, "E004", "NAME"),
        ({"CORRELATION": "jetsocket.correlation.JsonRcp"}, "E005", "JsonRpc"),
        ({"CHECK": "no.such.module"}, "E005", "there is no such module"),
    ],
)
def test_each_fault_has_its_id_and_shows_no_value(
    use: Use, section: dict[str, Any], code: str, told: str
) -> None:
    use(default={"BASE_URI": "ws://localhost/"}, other=section)
    [(ident, message)] = found().items()
    assert ident == f"jetsocket.{code}"
    assert 'JETSOCKET["other"]' in message
    assert told.strip('"') in message
    assert "hidden" not in message


def test_what_is_right_is_passed(use: Use) -> None:
    use(default={"BASE_URI": "wss://node.example.com", "CORRELATION": "jetsocket.correlation.JsonRpc"})
    assert found() == {}


def test_an_alias_that_is_no_name_is_told_of(use: Use) -> None:
    """It is the pool's name, unless NAME is another."""
    use(**{"two\nlines": {}, "an\nother": {"NAME": "another"}})
    [(ident, message)] = found().items()
    told = "printable, without line breaks and control characters"
    where = 'JETSOCKET["two lines"]'
    assert (ident, message) == ("jetsocket.E004", f"{where}: the pool's name must be {told}")


def test_settings_that_are_no_mapping_are_told(use: Use) -> None:
    from django.test import override_settings

    with override_settings(JETSOCKET=["default"]):
        assert found() == {
            "jetsocket.E004": "settings.JETSOCKET must be a mapping of names to the settings of a pool"
        }
