"""What `manager_kwargs["auth"]` accepts, checked; nothing of it is shown."""

from __future__ import annotations

from jetsocket.argument_checks import runs_later
from jetsocket.auth.base import Auth
from jetsocket.auth.static import BasicAuth
from jetsocket.interrupts import is_alarm

__all__ = ["accepted"]


def accepted(name: str, value: object) -> Auth:
    """Check it.

    Args:
        name: What it is called.
        value: A pair of user name and password, or an `Auth`.

    Raises:
        TypeError: It is neither.
        ValueError: The pair can't be sent.
    """
    if isinstance(value, (tuple, list)) and len(value) == 2:
        try:
            return BasicAuth(*value)
        except (TypeError, ValueError) as error:
            if is_alarm(error):
                raise
            raise type(error)(f"{name}: {error}") from None
    hint = "; for a token, BearerAuth(token)" if isinstance(value, str) else ""
    if isinstance(value, type) or not isinstance(value, Auth):
        raise TypeError(
            f"{name} must be (user, password) or an Auth, with prepare and refused, not"
            f" {f'the class {value.__name__}' if isinstance(value, type) else type(value).__name__}{hint}"
        )
    if runs_later(value.prepare) or runs_later(value.refused):
        raise TypeError(
            f"{name}: prepare and refused must be ordinary functions, not async ones or generators"
        )
    return value
