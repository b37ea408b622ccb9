"""Which addresses we connect to: the guard against server-side request forgery.

Whoever names a server decides which name we look up, and the DNS of that name decides the address.
So the address is checked last of all, when the socket to it is made: after literals, redirects,
SRV records and changing DNS answers have had their say.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    AddressInfo = tuple[
        int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[object, ...]
    ]

# The IANA registries of special-purpose addresses, and multicast.
_SPECIAL_IPV4 = [
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carriers' NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, where clouds keep credentials
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
]
# Global unicast is 2000::/3. Loopback, unspecified, mapped, link-local, unique local, multicast are
# all outside it.
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_IPV6 = [
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "3fff::/20",  # documentation
    )
]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class DeniedAddress(OSError):
    """Federation does not connect to this address."""


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the open internet."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:  # How a host without IPv4 reaches that address.
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)))
        return ip in _GLOBAL_IPV6 and not any(ip in network for network in _SPECIAL_IPV6)
    return not any(ip in network for network in _SPECIAL_IPV4)


def socket_factory(*, allow_private: bool) -> Callable[[AddressInfo], socket.socket]:
    """Return what makes the socket for each address that is tried.

    It raises `DeniedAddress` for one that must not be.
    """

    def make(info: AddressInfo) -> socket.socket:
        family, kind, protocol, _, address = info
        if not allow_private and not is_public(str(address[0])):
            raise DeniedAddress(f"{address[0]} is not a public address")
        return socket.socket(family, kind, protocol)

    return make
