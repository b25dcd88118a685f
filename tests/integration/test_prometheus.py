"""A real Prometheus scrapes a loaded pool: the queries of the dashboard and of the alerts find something."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.running import PATIENCE, ROOT, free_port, running
from tests.servers import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

HERE = ROOT / "docs" / "examples" / "metrics"
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
if PROMETHEUS is None or PROMTOOL is None:
    pytest.skip("Debian's prometheus is not installed", allow_module_level=True)


def got(uri: str) -> Any:
    with urllib.request.urlopen(uri, timeout=5) as reply:
        return json.loads(reply.read())


def answers(uri: str) -> bool:
    try:
        with urllib.request.urlopen(uri, timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a Prometheus listens that has scraped the example a few times, by the example's own settings."""
    tmp, app, port = tmp_path_factory.mktemp("prometheus"), free_port(), free_port()
    settings = (HERE / "prometheus.yml").read_text(encoding="utf-8")
    (tmp / "prometheus.yml").write_text(settings.replace("9464", str(app)).replace("5s", "1s"))
    shutil.copy(HERE / "alerts.yml", tmp)
    server = [
        str(PROMETHEUS),
        f"--config.file={tmp / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    program = [sys.executable, str(HERE / "app.py"), str(app), "80"]
    where = f"http://127.0.0.1:{port}"
    scrapes = f"{where}/api/v1/query?query=" + urllib.parse.quote("min(count_over_time(up[1m]))")
    with running(program, tmp / "app.log", PYTHONPATH=str(ROOT)):
        wait_until(lambda: answers(f"http://127.0.0.1:{app}/metrics"), PATIENCE)
        with running(server, tmp / "prometheus.log"):
            wait_until(lambda: answers(f"{where}/-/ready"), PATIENCE)
            wait_until(lambda: _value(got(scrapes)) >= 6, PATIENCE)
            yield where


def _value(answer: Any) -> float:
    result = answer["data"]["result"]
    return float(result[0]["value"][1]) if result else 0.0


def queries() -> dict[str, str]:
    """Those of the dashboard, as Grafana would send them for all pools."""
    dashboard = json.loads((HERE / "dashboard.json").read_text(encoding="utf-8"))
    found = {}
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            query = target["expr"].replace("$pool", ".*").replace("$__rate_interval", "1m")
            found[f"{panel['title']} {target['refId']}"] = query
    return found


@pytest.mark.parametrize("query", queries().values(), ids=queries())
def test_a_query_of_the_dashboard_finds_the_pool(prometheus: str, query: str) -> None:
    answer = got(f"{prometheus}/api/v1/query?query={urllib.parse.quote(query)}")
    result = answer["data"]["result"]
    assert result, query
    assert {each["metric"]["jetsocket_pool_name"] for each in result} == {"node"}
    assert all(float(each["value"][1]) >= 0 for each in result), result  # and is a number


def test_the_alerts_are_evaluated_and_the_one_that_should_is_about_to_fire(prometheus: str) -> None:
    def rules() -> dict[str, Any]:
        [group] = got(f"{prometheus}/api/v1/rules")["data"]["groups"]
        return {rule["name"]: rule for rule in group["rules"]}

    wait_until(lambda: rules()["JetSocketCallersTimeOut"]["state"] == "pending", PATIENCE)
    assert {(rule["health"], rule.get("lastError")) for rule in rules().values()} == {("ok", None)}
    told = {
        name for rule in rules().values() for name in re.findall(r"jetsocket_\w+(?=\{|\[|\))", rule["query"])
    }
    known = set(got(f"{prometheus}/api/v1/label/__name__/values")["data"])
    assert told - {"jetsocket_pool_name", "jetsocket_limiter_name"} <= known


def test_each_alert_fires_when_it_should_and_for_that_pool_alone() -> None:
    tests = (HERE / "alerts_test.yml").read_text(encoding="utf-8")
    rules = (HERE / "alerts.yml").read_text(encoding="utf-8")
    assert re.findall(r"- alert: (\w+)", rules) == re.findall(r"alertname: (\w+)", tests)
    command = [str(PROMTOOL), "test", "rules", str(HERE / "alerts_test.yml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_shows_every_metric() -> None:
    from jetsocket.contrib.measures import MEASURES
    from jetsocket.contrib.prometheus import name_of

    text = " ".join(queries().values())
    assert [name_of(measure) for measure in MEASURES if name_of(measure) not in text] == []


def test_the_example_is_what_the_page_says() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"docs/examples/metrics/\w+\.\w+", page))
    assert named and all(Path(ROOT / each).exists() for each in named)
    assert {each.name for each in HERE.iterdir()} >= {Path(each).name for each in named}
