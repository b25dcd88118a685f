"""The soak (`make soak`): its plan, its sums and its verdicts; and a few seconds of it."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.soak import plan, report
from tests.soak.__main__ import options
from tests.soak.actions import Actions
from tests.soak.ledger import MIB, Ledger, counted
from tests.soak.tally import Failure, Tally
from tests.soak.world import Judge, Windows
from tests.test_docs import names_in

ROOT = Path(__file__).resolve().parent.parent
MEMORY = 100 * MIB

FOUND: dict[str, Any] = {
    "made": 100,
    "answered": 70,
    "replies": 200,
    "failed": {"TimeoutError": 20, "OnPurpose": 5},
    "struck": 5,
    "strikes": 6,
    "actions": {"fork": 2},
    "inherited": 1,
    "foreign": [],
    "unexplained": [],
    "broken": [],
    "pause": 1.0,
    "overrun": -3.0,
    "lent": {"direct": [6, 6]},
    "longest_close": 0.5,
    "ends": {"drain": 2, "close": 3},
    "forgotten": 0,
    "dropped": 4,
    "swallowed": 1,
    "unclosed": 2,
    "stuck": [],
    "start": {"sockets": 0, "fds": 3, "threads": 2, "rss": 50 * MIB},
    "end": {"sockets": 0, "fds": 3, "threads": 2, "rss": MEMORY + 20 * MIB},
    "objects": {},
    "memory": [[1.0, 90 * MIB], [5.0, MEMORY], [100.0, MEMORY]],
}

BEGIN, END = "<!-- figures: written by make soak -->", "<!-- end of figures -->"


def ledger(**changed: Any) -> Ledger:
    return Ledger({**copy.deepcopy(FOUND), **changed}, {"direct": 6}, {"direct": 6}, 50, {"cut": 2})


# --- the plan


def test_a_seed_draws_the_same_steps_again() -> None:
    for kind in plan.KINDS:
        drawn = [
            [plan.choose(rng, kind) for _ in range(200)]
            for rng in (plan.of_thread(7, "a"), plan.of_thread(7, "a"), plan.of_thread(8, "a"))
        ]
        assert drawn[0] == drawn[1] != drawn[2]
    assert list(islice(plan.weather(3), 50)) == list(islice(plan.weather(3), 50))


def test_every_step_of_a_plan_can_be_done() -> None:
    for kind in plan.KINDS:
        rng = plan.of_thread(1, kind.name)
        drawn = {plan.choose(rng, kind).action for _ in range(5000)}
        assert drawn == set(kind.actions)
        assert all(callable(getattr(Actions, action)) for action in drawn)


def test_only_directly_reached_pools_fork_and_only_synced_ones_are_answered_twice() -> None:
    """A child's connections could not be told from its parent's; a late second answer looks clean."""
    for kind in plan.KINDS:
        assert not (kind.proxied and "fork" in kind.actions)
        assert kind.synced or "twice" not in kind.actions


# --- what explains an error


def test_windows_explain_what_overlaps_them() -> None:
    windows = Windows()
    windows.begin(10.0)
    assert windows.overlap(5.0, 10.5) and windows.overlap(99.0, 99.5) and not windows.overlap(1.0, 9.9)
    windows.end(12.0)
    assert windows.overlap(12.0, 13.0) and not windows.overlap(12.1, 13.0)
    assert windows.longest_outside([1.0, 5.0, 9.5, 20.0, 21.0, 0.0]) == 4.5  # 9.5 to 20 is excused
    assert windows.longest_outside([]) == 0.0


def test_an_error_is_judged_in_hindsight() -> None:
    class Slot:
        windows = Windows()

    outages, slot, now = Windows(), Slot(), monotonic()
    judge = Judge([], outages)
    judge.hear(slot, [Failure(now - 10, now - 9, "old"), Failure(now - 1, now, "young")])  # type: ignore[arg-type]
    judge.judge()
    assert judge.unexplained == ["old"]
    slot.windows.begin(now - 0.5)
    judge.judge(final=True)
    assert judge.unexplained == ["old"]


# --- the sums


def test_tallies_add_up() -> None:
    one, other = (
        Tally(made=1, overrun=2.0, foreign=["x"]),
        Tally(made=2, answered=1, overrun=1.0, answered_at=9.0),
    )
    other.failed["TimeoutError"] += 1
    one.add(other)
    assert (one.made, one.answered, one.failed, one.foreign) == (3, 1, {"TimeoutError": 1}, ["x"])
    assert (one.overrun, one.answered_at) == (2.0, 9.0)


def test_a_flat_ledger_breaks_nothing() -> None:
    assert [one for one in ledger().verdicts() if not one.kept] == []
    assert ledger().broken() == []
    assert ledger().warm() == MEMORY
    assert counted({"a": 1, "b": 2000}) == "b 2,000, a 1"


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"made": 101}, "calls made: 101"),
        ({"replies": 0}, "replies checked: 0"),
        ({"foreign": ["mine received yours"]}, "mine received yours"),
        ({"unexplained": ["a TimeoutError out of the blue"]}, "a TimeoutError out of the blue"),
        ({"broken": ["a TypeError"]}, "a TypeError"),
        ({"pause": 11.0}, "longest time without an answer, the server being up: 11.00 s"),
        ({"overrun": 5.5}, "latest end of an operation after its deadline: 5.50 s"),
        ({"lent": {"direct": [5, 6]}}, "lent at once in the end, pool direct: 5; it has to be 6"),
        ({"longest_close": 7.0}, "longest close(): 7.00 s"),
        ({"forgotten": 1}, "forgotten pools that are still there: 1"),
        ({"stuck": ["direct-1"]}, "threads that are stuck: 1"),
        ({"end": {**FOUND["end"], "sockets": 1}}, "sockets at start and end: 0, 1"),
        ({"end": {**FOUND["end"], "threads": 3}}, "threads at start and end: 2, 3"),
        ({"objects": {"Entry": 2}}, "the library's objects that are left: Entry 2"),
        (
            {"end": {**FOUND["end"], "rss": 133 * MIB}},
            "memory after warm-up and in the end: 100.0 MiB, 133.0 MiB",
        ),
    ],
)
def test_whatever_is_not_flat_is_told(changed: dict[str, Any], told: str) -> None:
    assert any(told in text for text in ledger(**changed).broken())


def test_a_cap_that_was_exceeded_is_told() -> None:
    assert replace(ledger(), most={"direct": 7}).broken() == [
        "open at once, pool direct: 7; it has to be at most 6"
    ]


# --- what is shown


def test_the_figures_are_written_into_the_page(tmp_path: Path) -> None:
    suites = [{"row": "forks", "test": "tests/faults/test_x.py::test_y[a|b]", "figures": {"most_open": 4}}]
    found = report.results(10.0, 7, ledger().verdicts(), suites, failed=False)
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "reliability.md"
    with pytest.raises(FileNotFoundError):
        report.write(found, tmp_path)
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="no place for the figures"):
        report.write(found, tmp_path)
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    report.write(found, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "| foreign replies | 0 | 0 | kept |" in text
    assert "| forks | `test_x.py::test_y[a\\|b]` | most open 4 |" in text
    assert json.loads((tmp_path / "docs/reliability/results.json").read_text("utf-8"))["seed"] == 7


def test_the_page_has_a_place_for_the_figures() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1


@pytest.mark.slow
def test_every_test_that_the_page_names_exists() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    links = re.findall(r"\[`(\w+)`\]\(\.\./(tests/[\w/]+\.py)\)", text)
    assert len(links) > 20
    assert [name for name, path in links if name not in names_in(ROOT / path)] == []


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    look = dict.fromkeys(("made", "answered", "struck", "foreign", "broken", "sockets", "threads", "rss"), 1)
    show = report.Lines()
    for at in (0.5, 1.0, 10.0, 10.6, 11.0):
        show({**look, "at": at, "failed": {"TimeoutError": 1}})
    assert capsys.readouterr().err.count("answered 1, failed by name 1") == 2


def test_the_command_line_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MINUTES", "3"), ("SEED", "5"), ("ONLY", "soak")):
        monkeypatch.setenv(name, value)
    assert vars(options([])) == {"minutes": 3.0, "seed": 5, "only": "soak", "json": None}
    assert options(["--minutes", "0.5"]).minutes == 0.5
    for wrong in (["--minutes", "0"], ["--only", "half"]):
        with pytest.raises(SystemExit):
            options(wrong)


# --- the thing itself


def run_soak(minutes: float, path: Path) -> dict[str, Any]:
    """Soak for so many minutes, without the suites: what is left is flat, and written to `path`."""
    command = [sys.executable, "-m", "tests.soak", "--only", "soak", "--minutes", f"{minutes}"]
    command += ["--seed", "1", "--json", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
@pytest.mark.timeout(120)
def test_a_few_seconds_of_it_leave_a_flat_ledger(tmp_path: Path) -> None:
    found = run_soak(0.03, tmp_path / "ledger.json")
    assert found["seed"] == 1 and all(row["kept"] for row in found["soak"])
    assert found["found"]["answered"] > 20
