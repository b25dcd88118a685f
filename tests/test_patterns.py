"""Regular expressions that are compiled at their first use."""

from __future__ import annotations

import re

import pytest

from jetsocket.patterns import pattern


def test_it_is_what_re_compiles() -> None:
    later = pattern("(?P<word>[a-z]+)")
    found = later.search("1 ab")
    assert found is not None and found["word"] == "ab"
    assert later.sub("-", "ab 1 cd") == "- 1 -"
    assert later.pattern == "(?P<word>[a-z]+)"
    assert pattern(rb"\d").findall(b"1a2") == [b"1", b"2"]


def test_it_is_compiled_once_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str | bytes] = []
    compile_ = re.compile

    def counting(text: str) -> re.Pattern[str]:
        compiled.append(text)
        return compile_(text)

    monkeypatch.setattr(re, "compile", counting)
    later = pattern("a")
    assert compiled == []
    assert later.match("a") and later.match("ab") and not later.match("b")
    assert compiled == ["a"]


def test_what_is_wrong_with_one_is_told_at_its_first_use() -> None:
    with pytest.raises(re.error):
        pattern("(").match("")
