"""Django: pools of ``settings.JETSOCKET``, checks, `manage.py jetsocket`; needs the extra `django`."""

from jetsocket.contrib.django.pools import Pools, pool, pools

__all__ = ["Pools", "pool", "pools"]
