"""Correlations: which reply belongs to which request, protocol by protocol. Here are the public names."""

from jetsocket.correlation.base import Asked, Correlation, NewId
from jetsocket.ids import key_of

__all__ = ["Asked", "Correlation", "NewId", "key_of"]
