"""Which of a router's mappings is ours, and what is told of it."""

from __future__ import annotations

from federation.dht.portmap import Mapped, MappingStatus, NotMapped, PortMap

DHT, PORT = 50082, 50081


def portmap(*handles: int) -> PortMap:
    found = PortMap(DHT)
    found.renew()
    assert not found.asked(handles)
    return found


def test_a_mapping_counts_once_we_asked_for_it() -> None:
    found = PortMap(DHT)
    assert not found.heard(Mapped(2, True, PORT, "UPnP"))
    assert not found.stray(), "our own handle is not known yet"
    assert found.asked([2, 2])
    assert found.status() == MappingStatus(PORT, "UPnP", "")
    assert not found.heard(Mapped(2, True, PORT, "UPnP")), "renewed, and nothing changed"


def test_the_other_tcp_port_is_given_up_and_the_udp_port_stays() -> None:
    found = portmap(2)
    found.heard(Mapped(0, True, DHT, "UPnP"))
    found.heard(Mapped(1, False, DHT, "UPnP"))
    found.heard(Mapped(2, True, PORT, "UPnP"))
    assert found.stray()
    assert not found.stray(), "once"
    assert found.port == PORT


def test_a_port_of_the_library_with_our_handle_is_not_ours() -> None:
    found = portmap(0)
    assert not found.heard(Mapped(0, True, DHT, "UPnP"))
    assert not found.stray(), "giving it up could be giving up ours"
    assert found.heard(Mapped(0, True, 40_000, "UPnP"))
    assert found.port == 40_000, "the router had another one to give"


def test_one_protocol_is_enough_and_the_chosen_port_stays() -> None:
    found = portmap(2)
    assert not found.heard(NotMapped(2, "NAT-PMP", "no router"))
    assert found.status() == MappingStatus(0, "", "NAT-PMP: no router")
    assert found.heard(Mapped(2, True, 40_001, "UPnP"))
    assert not found.heard(Mapped(2, True, 40_002, "NAT-PMP"))
    assert found.status() == MappingStatus(40_001, "UPnP", "")


def test_a_renewal_keeps_the_port_until_routers_had_time_to_answer() -> None:
    found = portmap(2)
    found.heard(Mapped(2, True, PORT, "UPnP"))
    found.renew()
    assert not found.asked([3])
    assert found.port == PORT
    assert not found.heard(Mapped(3, True, PORT, "UPnP"))
    assert not found.settle()
    found.renew()
    found.asked([4])
    assert found.settle()
    assert found.port == 0
    found.heard(Mapped(4, True, PORT, "NAT-PMP"))
    found.closed()
    assert found.status() == MappingStatus(0, "", "")
