"""Correlations: which reply belongs to which request, protocol by protocol. Here are the public names."""

from jetsocket.correlation.base import Asked, Correlation, NewId
from jetsocket.correlation.by_id import ById
from jetsocket.correlation.cdp import Cdp
from jetsocket.correlation.graphql import GraphQLTransportWs
from jetsocket.correlation.home_assistant import HomeAssistant
from jetsocket.correlation.jsonrpc import JsonRpc
from jetsocket.correlation.jupyter import Jupyter
from jetsocket.correlation.obs import Obs
from jetsocket.ids import key_of

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
    "key_of",
]
