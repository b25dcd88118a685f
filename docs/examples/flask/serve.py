"""The application under waitress: `python serve.py`."""

import os
import signal

from app import create_app
from waitress import serve

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or it ends at once, and cuts its connections
    serve(create_app(), listen=f"localhost:{os.environ.get('PORT', '8080')}")
