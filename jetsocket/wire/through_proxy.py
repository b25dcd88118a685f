"""The way to a host through a proxy: which one, how to call it, and what to do when it refuses."""

from __future__ import annotations

import socket

from jetsocket import uris
from jetsocket.clock import monotonic
from jetsocket.interrupts import is_alarm
from jetsocket.wire import proxy_tunnel
from jetsocket.wire.proxy_environment import Choice, is_loopback
from jetsocket.wire.proxy_url import DIRECTLY, Proxy, import_python_socks, redact_proxy
from jetsocket.wire.race import interleaved
from jetsocket.wire.reach import Reach
from jetsocket.wire.redaction import raise_alone
from jetsocket.wire.stream import Stream


class ThroughProxy(Reach):
    """The opening of one connection, through a proxy too."""

    def _tunnel(self, choice: Choice) -> Stream:
        """Have a proxy connect to the target."""
        proxy, shown = self._usable(choice)
        host, port = self._target.host.partition("%")[0], self._target.port  # a zone says nothing elsewhere
        hosts = [host]
        if proxy.wants_address and not uris.is_ip(host):
            family = socket.AF_INET if proxy.scheme == "socks4" else socket.AF_UNSPEC
            hosts = [address.sockaddr[0] for address in interleaved(self._look_up(host, port, family))]
        places = self._look_up(proxy.host, proxy.port, whom=shown)
        refusals: list[proxy_tunnel.Refusal] = []
        for host in hosts:
            stream = self._race(places, shown)
            self._stage = f"asking {shown} for {uris.bracketed(host)}:{port}"
            refusal = self._ask_proxy(stream, proxy, host, len(hosts) - len(refusals))
            if refusal is None:
                return stream
            stream.close()
            refusals.append(refusal)
            if not refusal.of_address:
                break
        told = [f"{host}: {each.why}" for host, each in zip(hosts, refusals, strict=False)]
        last = refusals[-1]
        why = ", ".join(told) if told[1:] else last.why
        raise self._failed(why, self._advised(last.advice, choice), is_final=last.is_final) from last.cause

    def _ask_proxy(self, stream: Stream, proxy: Proxy, host: str, left: int) -> proxy_tunnel.Refusal | None:
        """Ask for one of so many addresses that are left; each has its share of the time."""
        until = self._deadline if left == 1 else monotonic() + self._remaining() / left
        try:
            return proxy_tunnel.ask(stream, proxy, host, self._target.port, until)
        except OSError as error:
            if is_alarm(error):
                raise
            if isinstance(error, TimeoutError):
                if left == 1 or self._remaining() <= 0:
                    raise_alone(self._timed_out())
                return proxy_tunnel.Refusal("the proxy took too long", proxy_tunnel.CHECK, of_address=True)
            why, cause = error.strerror or str(error), error.with_traceback(None)
            return proxy_tunnel.Refusal(why, proxy_tunnel.CHECK, of_address=True, cause=cause)

    def _usable(self, choice: Choice) -> tuple[Proxy, str]:
        """The proxy, and how to call it in messages."""
        shown = f"the proxy {redact_proxy(choice.url)}"
        advice = "correct the proxy's URL"
        if choice.variable is not None:
            shown += f" ({choice.variable})"
            advice = f"correct {choice.variable}, or pass {DIRECTLY} to connect directly"
        self._stage = f"using {shown}"
        try:
            proxy = Proxy.parse(choice.url)
        except ValueError as error:
            if is_alarm(error):
                raise
            raise_alone(self._failed(error, advice, is_final=True))
        if proxy.scheme != "http":
            try:
                import_python_socks()  # before anything is opened, for it may be missing
            except ImportError as error:
                if choice.variable is None:
                    raise
                why = f"{choice.variable} names a SOCKS proxy"
                raise_alone(self._failed(why, str(error), is_final=True), error.with_traceback(None))
        return proxy, shown

    def _advised(self, advice: str, choice: Choice) -> str:
        """What to do, where a proxy has refused."""
        host = self._target.host
        if not is_loopback(host):
            return advice
        instead = f"list it in NO_PROXY, or pass {DIRECTLY}"
        if choice.variable is None:  # then nothing of the environment counts
            instead = f"pass {DIRECTLY}, or True in place of its URL and list it in NO_PROXY"
        return f"{advice}; {host} is this machine, and its own to the proxy: {instead}"
