"""Credentials of the upgrade, and addresses that are good for one connection. Here are the public names.

What is given as `manager_kwargs["auth"]` is asked before each connect, in the opener and within its deadline,
where to dial and what to send there.
"""

from jetsocket.lazy_names import lazy_names

TYPE_CHECKING = False  # type checkers take it for typing's

if TYPE_CHECKING:
    from jetsocket.auth.base import Auth, Prepared
    from jetsocket.auth.kucoin import KuCoin
    from jetsocket.auth.signalr import SignalR
    from jetsocket.auth.slack import SlackSocketMode
    from jetsocket.auth.static import BasicAuth, BearerAuth
    from jetsocket.auth.tickets import TicketAuth
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "jetsocket.auth.base": ["Auth", "Prepared"],
            "jetsocket.auth.kucoin": ["KuCoin"],
            "jetsocket.auth.signalr": ["SignalR"],
            "jetsocket.auth.slack": ["SlackSocketMode"],
            "jetsocket.auth.static": ["BasicAuth", "BearerAuth"],
            "jetsocket.auth.tickets": ["TicketAuth"],
        },
    )

__all__ = [
    "Auth",
    "BasicAuth",
    "BearerAuth",
    "KuCoin",
    "Prepared",
    "SignalR",
    "SlackSocketMode",
    "TicketAuth",
]
