"""A hostile neighbour: announces colonies that do not exist, as fast as it can.

Run as a program inside a network namespace; prints how many announcements it sent.
"""

from __future__ import annotations

import argparse
import random
import socket
import time
from collections.abc import Iterator

from zeroconf._dns import DNSAddress, DNSPointer, DNSService, DNSText
from zeroconf._protocol.outgoing import DNSOutgoing
from zeroconf.const import _CLASS_IN, _CLASS_UNIQUE, _FLAGS_AA, _FLAGS_QR_RESPONSE

from federation.network.mdns import SERVICE, instance_name

_TTL = 4500
_A, _PTR, _TXT, _SRV = 1, 12, 16, 33


def announcement(colony: str, address: str, port: int) -> bytes:
    """One whole announcement, as a real colony makes it."""
    name, server = instance_name(colony), f"{colony[:32]}.local."
    unique = _CLASS_IN | _CLASS_UNIQUE
    text = b"".join(
        bytes([len(each)]) + each
        for each in (b"v=1", b"id=" + colony.encode(), b"fp=" + colony[::-1].encode())
    )
    out = DNSOutgoing(_FLAGS_QR_RESPONSE | _FLAGS_AA)
    out.add_answer_at_time(DNSPointer(SERVICE, _PTR, _CLASS_IN, _TTL, name), 0)
    out.add_answer_at_time(DNSService(name, _SRV, unique, _TTL, 0, 0, port, server), 0)
    out.add_answer_at_time(DNSText(name, _TXT, unique, _TTL, text), 0)
    out.add_answer_at_time(DNSAddress(server, _A, unique, _TTL, socket.inet_aton(address)), 0)
    return bytes(out.packets()[0])


def lies(seed: int, network: str) -> Iterator[bytes]:
    """Announcements of colonies at every address of a network such as "10.77.0"."""
    dice = random.Random(seed)
    while True:
        colony = dice.randbytes(32).hex()
        yield announcement(
            colony, f"{network}.{dice.randrange(100, 254)}", dice.randrange(1, 65536)
        )


def main() -> None:
    """Send them to the group of mDNS, from one of our addresses."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=0.0)
    options = parser.parse_args()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
        source = socket.inet_aton(options.source)
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, source)
        sender.bind((options.source, 0))
        begin, sent = time.monotonic(), 0
        for lie in lies(1, options.source.rpartition(".")[0]):
            sender.sendto(lie, ("224.0.0.251", 5353))
            sent += 1
            # Spread over the time given, if any.
            while sent / options.count * options.seconds > time.monotonic() - begin:
                time.sleep(0.001)
            if sent == options.count:
                break
    print(sent)


if __name__ == "__main__":
    main()
