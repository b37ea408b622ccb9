"""Which addresses are of the open internet."""

from __future__ import annotations

import socket

import pytest

from minihs.remote.addresses import DeniedAddress, is_public, socket_factory

PUBLIC = ["1.1.1.1", "9.9.9.9", "172.32.0.1", "223.255.255.255", "100.128.0.1", "192.0.3.1",
          "2606:4700::1111", "2a00:1450::1", "64:ff9b::101:101"]  # fmt: skip
DENIED = [
    "0.0.0.0",  # noqa: S104  # to connect to
    "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "127.1.2.3",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1",
    "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:1.1.1.1",
    "::ffff:0:127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1", "100::1",
    "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "2002:7f00:1::",
    "2002:a00:1::1", "2002:101:101::1", "3fff::1", "fc00::1", "fd12:3456::1", "fe80::1",
    "fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1",
    "", "localhost", "127.1", "0x7f.1", "1.1.1.1.1", "[::1]",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", DENIED)
def test_f14_addresses_of_ones_own_are_denied(address: str) -> None:
    assert not is_public(address)
    info = (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443))
    with pytest.raises(DeniedAddress):
        socket_factory(allow_private=False)(info)


def test_a_test_network_may_be_private() -> None:
    info = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 443))
    with socket_factory(allow_private=True)(info) as made:
        assert made.family == socket.AF_INET
