"""Which addresses are internal, in every notation, and look-ups that end."""

from __future__ import annotations

import socket
import threading

import pytest

from runtime.network.addresses import is_internal, look_up

INTERNAL = (
    "127.0.0.1",
    "127.255.0.9",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",  # metadata of most clouds
    "100.64.0.1",  # shared by the customers of a provider
    "100.100.100.200",  # metadata of another
    "192.0.0.192",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%2",
    "fd00:ec2::254",
    "ff02::1",
    "fec0::1",
    "64:ff9b:1::a00:1",
    "::ffff:127.0.0.1",
    "::ffff:a9fe:a9fe",
    "::127.0.0.1",
    "64:ff9b::10.0.0.1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
)
PUBLIC = ("1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8")


@pytest.mark.parametrize("address", INTERNAL)
def test_internal(address):
    assert is_internal(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_public(address):
    assert not is_internal(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "localhost"])
def test_every_notation_of_this_machine(host):
    assert all(is_internal(place.address[0]) for place in look_up(host, 80, 20))


def test_a_look_up_ends(monkeypatch):
    over = threading.Event()

    def hang(*_, flags=0, **__):
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror
        return over.wait(20) and []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    with pytest.raises(TimeoutError, match="a.name was not found in time"):
        look_up("a.name", 80, 0.01)
    over.set()


def test_no_such_name(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(socket.gaierror):
        look_up("a.name", 80, 20)
