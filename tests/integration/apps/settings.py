"""What the apps and the tests that run them agree on."""

from __future__ import annotations

CAP = 3  # connections that the pool of one process may have
URI_VARIABLE = "JETSOCKET_TEST_URI"
BROKER_VARIABLE = "JETSOCKET_TEST_BROKER"
SERIALIZER_VARIABLE = "JETSOCKET_TEST_SERIALIZER"
