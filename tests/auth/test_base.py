"""What an `auth` answers, checked and shown.

Also tests: `accepted`.
"""

from __future__ import annotations

from typing import Any

import pytest

import jetsocket.auth
from jetsocket.auth import Auth, BearerAuth, Prepared
from jetsocket.auth.accepted import accepted

SECRET = "s3cr3t-ticket-of-length"


def test_headers_are_kept_as_pairs_and_subprotocols_as_a_tuple() -> None:
    prepared = Prepared("wss://host/", {"X-Key": "1"}, ["a", "b"])
    assert prepared.headers == (("X-Key", "1"),)
    assert prepared.subprotocols == ("a", "b")
    assert prepared == Prepared("wss://host/", [("X-Key", "1")], ("a", "b"))


def test_its_repr_shows_the_host_and_names_only() -> None:
    prepared = Prepared(f"wss://me:{SECRET}@host:444/{SECRET}?t={SECRET}", {"X-Key": SECRET}, [SECRET])
    assert repr(prepared) == "Prepared('wss://host:444', headers=<X-Key>, subprotocols=<1>)"
    assert repr(Prepared(SECRET)) == "Prepared('***', headers=<>, subprotocols=<0>)"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ((1,), TypeError),
        (("ws://h/", "X: 1"), TypeError),
        (("ws://h/", {"X": f"{SECRET}\r\n"}), ValueError),
        (("ws://h/", {"Upgrade": SECRET}), ValueError),
        (("ws://h/", (), SECRET), TypeError),
        (("ws://h/", (), [f"{SECRET}="]), ValueError),
        (("ws://h/", (), [1]), ValueError),
    ],
)
def test_what_no_request_may_have_is_refused_unseen(given: tuple[Any, ...], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        Prepared(*given)
    assert SECRET not in str(caught.value)


def test_one_of_ones_own_need_not_be_a_subclass() -> None:
    class Mine:
        def prepare(self, uri: str, timeout: float) -> Prepared:
            return Prepared(uri)

        def refused(self, prepared: Prepared) -> bool:
            return False

    assert isinstance(Mine(), Auth)
    mine = Mine()
    assert accepted("auth", mine) is mine


def test_a_subclass_gives_up_at_the_first_refusal_unless_it_says_otherwise() -> None:
    class Mine(Auth):
        def prepare(self, uri: str, timeout: float) -> Prepared:
            return Prepared(uri)

    assert Mine().refused(Prepared("ws://h/")) is False


class Later(Auth):
    async def prepare(self, uri: str, timeout: float) -> Prepared:  # type: ignore[override]  # the mistake
        return Prepared(uri)


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        (SECRET, TypeError, r"for a token, BearerAuth\(token\)"),
        ((SECRET, 1), TypeError, "user and password must be str"),
        ((SECRET, SECRET, SECRET), TypeError, "not tuple"),
        ((f"{SECRET}:", SECRET), ValueError, "colon"),
        (BearerAuth, TypeError, "not the class BearerAuth"),
        (Later(), TypeError, "ordinary functions"),
        (lambda: SECRET, TypeError, "not function"),
    ],
)
def test_what_is_none_is_refused_unseen(given: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told) as caught:
        accepted("auth", given)
    assert SECRET not in str(caught.value)
    assert str(caught.value).startswith("auth")


def test_the_package_tells_its_names() -> None:
    assert set(jetsocket.auth.__all__) <= set(dir(jetsocket.auth))
    for name in jetsocket.auth.__all__:
        assert getattr(jetsocket.auth, name).__name__ == name
