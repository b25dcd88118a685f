# For gunicorn's gevent workers with --preload: the app is imported before gunicorn patches, so this has to.
from gevent import monkey

monkey.patch_all()
