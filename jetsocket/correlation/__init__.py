"""Correlations: which reply belongs to which request, protocol by protocol. Here are the public names."""

from jetsocket.lazy_names import lazy_names

TYPE_CHECKING = False  # type checkers take it for typing's

if TYPE_CHECKING:
    from jetsocket.correlation.base import Asked, Correlation, NewId, Opened, Topics
    from jetsocket.correlation.by_id import ById
    from jetsocket.correlation.cdp import Cdp
    from jetsocket.correlation.graphql import GraphQLTransportWs
    from jetsocket.correlation.home_assistant import HomeAssistant
    from jetsocket.correlation.jsonrpc import JsonRpc
    from jetsocket.correlation.jupyter import Jupyter
    from jetsocket.correlation.obs import Obs
    from jetsocket.ids import key_of
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "jetsocket.correlation.base": ["Asked", "Correlation", "NewId", "Opened", "Topics"],
            "jetsocket.correlation.by_id": ["ById"],
            "jetsocket.correlation.cdp": ["Cdp"],
            "jetsocket.correlation.graphql": ["GraphQLTransportWs"],
            "jetsocket.correlation.home_assistant": ["HomeAssistant"],
            "jetsocket.correlation.jsonrpc": ["JsonRpc"],
            "jetsocket.correlation.jupyter": ["Jupyter"],
            "jetsocket.correlation.obs": ["Obs"],
            "jetsocket.ids": ["key_of"],
        },
    )

__all__ = [
    "Asked",
    "ById",
    "Cdp",
    "Correlation",
    "GraphQLTransportWs",
    "HomeAssistant",
    "JsonRpc",
    "Jupyter",
    "NewId",
    "Obs",
    "Opened",
    "Topics",
    "key_of",
]
