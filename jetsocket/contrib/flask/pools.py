"""The pools of one application: read from its configuration when they are first asked for, and then kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

from jetsocket import ConnectionPool
from jetsocket.framework_settings import section_arguments
from jetsocket.mapping import arguments_of

__all__ = ["DEFAULT_PREFIX", "PLAIN", "Pools"]

DEFAULT_PREFIX = "JETSOCKET"
PLAIN = "default"
"""What the pool is called whose settings stand under the prefix itself."""

_NOT_A_POOLS = ("POOLS",)
_NOT_A_POOLS_BEGIN = ("STATUS_",)
_OTHERS = (*_NOT_A_POOLS, "STATUS_DIR")


class Pools(Mapping[str, ConnectionPool[Any]]):
    """The pools of an application by name, `app.extensions["jetsocket"]`; each is made when first looked up.

    The pool of ``JETSOCKET_BASE_URI`` and its like is "default"; that of another prefix is called as the
    prefix, in small letters; those of ``JETSOCKET_POOLS`` have their own names.

    Attributes:
        publishes: Whether pools that are made write to ``JETSOCKET_STATUS_DIR`` what they do.
        on_made: Is called with each pool that is made from now on; None: nothing is.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Be there; `add` says what to read.

        Args:
            config: The application's, read when a pool is made.
        """
        self._config = config
        self._prefixes: list[str] = []
        self.publishes = True
        self.on_made: Callable[[ConnectionPool[Any]], None] | None = None
        self._made: dict[tuple[str, str], ConnectionPool[Any]] = {}  # by prefix and alias

    def add(self, prefix: str) -> None:
        """Read what stands under that prefix, too."""
        if prefix not in self._prefixes:
            self._prefixes.append(prefix)

    # --- by name, of all prefixes ----------------------------------------------------------------------

    def __getitem__(self, name: str) -> ConnectionPool[Any]:
        return self.pool(*self._home(name))

    def __contains__(self, name: object) -> bool:
        return name in self._homes()  # without making it

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes())

    def __len__(self) -> int:
        return len(self._homes())

    def settings(self, name: str) -> dict[str, Any]:
        """The arguments that the pool of that name is made with.

        Raises:
            KeyError: There is none.
            TypeError: A setting is unknown.
            ValueError: One is refused.
        """
        return self._arguments(*self._home(name))

    def made(self) -> dict[str, ConnectionPool[Any]]:
        """Those that are made already, by name."""
        return {self._name(*home): pool for home, pool in list(self._made.items())}

    def directories(self) -> list[str]:
        """Where workers write what their pools do: ``JETSOCKET_STATUS_DIR``, if it is set."""
        found = [self._config.get(f"{prefix}_STATUS_DIR") for prefix in self._prefixes]
        return list(dict.fromkeys(os.fspath(each) for each in found if each))

    def close_all(self, *, but: Collection[str] = ()) -> None:
        """Close those that are made. The next look-up makes another, of the settings as they are then.

        Args:
            but: Names of those that are kept.
        """
        for home in list(self._made):
            if self._name(*home) in but:
                continue
            pool = self._made.pop(home, None)
            if pool is not None:  # no other thread closes it, too
                pool.close()

    def _home(self, name: str) -> tuple[str, str]:
        homes = self._homes()
        if name not in homes:
            raise KeyError(f"there is no pool {name!r}; known are {', '.join(map(repr, homes))}")
        return homes[name]

    def _homes(self) -> dict[str, tuple[str, str]]:
        """Where the settings of each name stand."""
        homes: dict[str, tuple[str, str]] = {}
        for prefix in self._prefixes:
            for alias in self.aliases(prefix):
                name = self._name(prefix, alias)
                if name in homes:
                    there = " and ".join(f"{each}_*" for each in (homes[name][0], prefix))
                    raise ValueError(f"two pools of this application are called {name!r}: in {there}")
                homes[name] = prefix, alias
        return homes

    # --- by prefix and alias ---------------------------------------------------------------------------

    def pool(self, prefix: str, alias: str) -> ConnectionPool[Any]:
        """The pool of that name under that prefix.

        Raises:
            KeyError: There is none.
            TypeError: A setting is unknown.
            ValueError: One is refused.
        """
        pool = self._made.get((prefix, alias))
        if pool is not None:
            return pool
        made: ConnectionPool[Any] = ConnectionPool(**self._arguments(prefix, alias))
        # No lock, which a fork might copy while another thread holds it: of two made at once, one is kept.
        kept = self._made.setdefault((prefix, alias), made)
        if kept is not made:
            made.close()
            return kept
        if self.publishes and (directory := self._config.get(f"{prefix}_STATUS_DIR")):
            from jetsocket.contrib.status import publish  # not loaded without

            publish(made, directory)
        if self.on_made is not None:
            self.on_made(made)
        return made

    def aliases(self, prefix: str) -> list[str]:
        """The names of the pools under a prefix.

        Raises:
            ValueError: Its ``POOLS`` is no mapping of names, or has a name that is taken.
        """
        sections = self._sections(prefix)
        if not sections:
            return [PLAIN]
        if self._plain(prefix):
            if PLAIN in sections:
                there = f"the pool of {prefix}_BASE_URI and its like"
                raise ValueError(f'{prefix}_POOLS["{PLAIN}"] is {there}: write its settings there or here')
            return [PLAIN, *sections]
        return list(sections)

    def _arguments(self, prefix: str, alias: str) -> dict[str, Any]:
        aliases = self.aliases(prefix)
        if alias not in aliases:
            known = ", ".join(map(repr, aliases))
            raise KeyError(f"{prefix} configures no pool {alias!r}; known are {known}")
        name = self._name(prefix, alias)
        sections = self._sections(prefix)
        if alias in sections:
            return section_arguments(sections[alias], f'{prefix}_POOLS["{alias}"]', name=name)
        return {"name": name, **arguments_of(self._plain(prefix), prefix, others=_OTHERS)}

    def _name(self, prefix: str, alias: str) -> str:
        return prefix.lower() if alias == PLAIN and prefix != DEFAULT_PREFIX else alias

    def _sections(self, prefix: str) -> Mapping[str, Any]:
        sections = self._config.get(f"{prefix}_POOLS")
        if sections is None:
            return {}
        if not isinstance(sections, Mapping) or not all(isinstance(alias, str) for alias in sections):
            raise ValueError(f"{prefix}_POOLS must be a mapping of names to settings")
        return sections

    def _plain(self, prefix: str) -> dict[str, Any]:
        """The settings that stand under a prefix itself, and not under a longer one of another instance."""
        start = f"{prefix}_"
        others = tuple(f"{other}_" for other in self._prefixes if other.startswith(start))
        return {
            key: value
            for key, value in self._config.items()
            if key.startswith(start)
            and not key.startswith(others)
            and key.removeprefix(start) not in _NOT_A_POOLS
            and not key.removeprefix(start).startswith(_NOT_A_POOLS_BEGIN)
        }
