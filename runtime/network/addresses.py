"""Which addresses belong to a network of its own (this machine, this house, this cloud) and not to the internet."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
from contextlib import suppress
from typing import Any, NamedTuple

# IPv6 addresses that carry one of IPv4 in their last 32 bits, which a gateway on the way translates (RFC 6052)
_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")
# of IETF protocols (one cloud has its metadata there) and of translation within a network: Python counts them as
# internal since 3.12.4 only
_RESERVED = (ipaddress.ip_network("192.0.0.0/24"), ipaddress.ip_network("64:ff9b:1::/48"))


class Place(NamedTuple):
    """What a name stands for: an argument of `socket.socket` and one of its `connect`."""

    family: int
    address: tuple[Any, ...]


def is_internal(address: str) -> bool:
    """Whether a numeric address is not one of the public internet.

    Loopback, private, link-local (with the metadata services of clouds), shared, reserved and multicast addresses are
    internal, and so is every IPv6 form of one of them: mapped, 6to4, Teredo, translated.

    Raises:
        ValueError: it is no numeric address.
    """
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inside = [found.ipv4_mapped, found.sixtofour, *(found.teredo or ())]
        if found in _TRANSLATED or int(found) >> 32 == 0:  # the latter: IPv4-compatible, long out of use
            inside.append(ipaddress.IPv4Address(int(found) & 0xFFFFFFFF))
        known = [part for part in inside if part is not None]
        if known:
            return any(is_internal(str(part)) for part in known)
        if found.is_site_local:
            return True
    reserved = any(found in network for network in _RESERVED)
    return reserved or not found.is_global or found.is_multicast or found.is_reserved


def look_up(host: str, port: int, seconds: float) -> list[Place]:
    """The addresses behind a name, as the system gives them; a numeric one, in whatever notation, is itself.

    The system's look-up cannot be stopped: one that takes longer goes on in the background to its own end.

    Raises:
        OSError: no such name (`socket.gaierror`), or none within `seconds` (TimeoutError).
        UnicodeError: it cannot be a name.
    """
    with suppress(socket.gaierror):  # of a number there is nobody to ask
        return _places(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:  # is raised where it was asked for
            answer.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = answer.get(timeout=max(seconds, 0))
    except queue.Empty:
        raise TimeoutError(f"{host} was not found in time") from None
    if isinstance(found, Exception):
        raise found
    return _places(found)


def _places(found: list[Any]) -> list[Place]:
    return [Place(family, address) for family, _, _, _, address in found]
