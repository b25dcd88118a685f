"""A project that asks a JSON-RPC service: up to 32 requests at a time over 4 connections a process."""

import os

SECRET_KEY = "of this example alone"
DEBUG = True
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "urls"
WSGI_APPLICATION = "wsgi.application"
INSTALLED_APPS = ["jetsocket.contrib.django"]
USE_TZ = True

JETSOCKET = {
    "default": {
        "BASE_URI": os.environ.get("NODE", "ws://localhost:8765"),
        "CONFIG": {"max_connections": 4, "max_in_flight": 8},
        "CORRELATION": "jetsocket.correlation.JsonRpc",
    },
}
