"""With the oldest prometheus-client and OpenTelemetry that docs/metrics.md promises, their tests pass."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.running import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


def test_the_oldest_that_the_page_promises(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    [prometheus] = re.findall(r"prometheus-client (\d[\d.]*) or later", page)
    [telemetry] = re.findall(r"opentelemetry-api (\d[\d.]*) or later", page)
    wanted = [f"prometheus-client=={prometheus}.0", f"opentelemetry-sdk=={telemetry}.0"]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-input", "--target", str(tmp_path), *wanted]
    done = subprocess.run(pip, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    tests = [f"tests/contrib/test_{name}.py" for name in ("prometheus", "opentelemetry")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-c", "import prometheus_client; print(prometheus_client.__file__)"],
        check=True,
        capture_output=True,
        text=True,
        env=env,
    ).stdout
    assert told.startswith(str(tmp_path))
    done = subprocess.run(command, cwd=ROOT, env=env, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
