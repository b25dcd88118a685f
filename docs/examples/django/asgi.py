"""What uvicorn serves: `uvicorn asgi:application`."""

import os

from asgiref.sync import sync_to_async
from django.core.asgi import get_asgi_application

from jetsocket.contrib.django import pools

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")
django = get_asgi_application()


async def application(scope, receive, send):
    """Django; and when uvicorn ends, close the pools: it runs nothing at exit."""
    if scope["type"] != "lifespan":
        await django(scope, receive, send)
        return
    while True:
        message = await receive()
        if message["type"] == "lifespan.shutdown":
            await sync_to_async(pools.close_all)()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
