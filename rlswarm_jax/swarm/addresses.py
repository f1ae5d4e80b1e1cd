"""Addresses of nodes as people write them, and the names in them as this machine knows them.

Imports no libp2p, so that a config can be checked without.
"""

import enum
import ipaddress
import re
import socket
from typing import NamedTuple

from rlswarm_jax.identity import author_of

WANTED = "/ip4/ADDRESS/tcp/PORT/p2p/PEER_ID or /dns4/NAME/tcp/PORT/p2p/PEER_ID, as a node prints it when it starts"
ANY = "any"  # to listen on: all of this machine's addresses
ANNOUNCED = "/ip4/ADDRESS/tcp/PORT, /ip6/ADDRESS/tcp/PORT or /dns4/NAME/tcp/PORT, where others reach this node"
MAX_FOUND = 4  # addresses of a name
LOOKUP_SECONDS = 5.0
_FAMILIES = {"dns": socket.AF_UNSPEC, "dnsaddr": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}
_FORM = re.compile(
    r"/(ip4|ip6|dns|dns4|dns6|dnsaddr)/([^/\s]{1,253})(?:/tcp/([0-9]{1,5}))?(?:/p2p/([A-Za-z0-9]{1,128}))?"
)


class UnknownNameError(ValueError):
    """A name that this machine cannot resolve; the message says which, and why."""


class NodeAddress(NamedTuple):
    """kind: the protocol that `host` is of. port: None where a name's records are to say it (/dnsaddr)."""

    kind: str
    host: str
    port: int | None
    peer_id: str

    @property
    def text(self) -> str:
        port = "" if self.port is None else f"/tcp/{self.port}"
        return f"/{self.kind}/{self.host}{port}/p2p/{self.peer_id}"

    @property
    def is_name(self) -> bool:
        return self.kind in _FAMILIES


def read(text: object) -> NodeAddress | None:
    """None for what no node has for an address; its peer id must be that of a secp256k1 key."""
    found = _read(text)
    return found if found is not None and author_of(found.peer_id) is not None else None


def can_be_announced(text: str) -> bool:
    """Whether that is an address without a peer id, for which a node adds its own."""
    found = _read(text)
    return found is not None and found.kind != "dnsaddr" and not found.peer_id


def _read(text: object) -> NodeAddress | None:
    """Whosever it is; an empty peer id where none is named."""
    found = _FORM.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        return None
    kind, host, port = found[1], found[2], None if found[3] is None else int(found[3])
    if not (kind == "dnsaddr" if port is None else 1 <= port <= 65535):
        return None
    if kind in ("ip4", "ip6"):
        try:
            version = ipaddress.ip_address(host).version
        except ValueError:
            return None
        if kind != f"ip{version}" or "%" in host:
            return None
    return NodeAddress(kind, host, port, found[4] or "")


class Scope(enum.IntEnum):
    """From how far away an IP address means the same."""

    NONE = 0  # nobody's: several machines at once, or none
    LOOPBACK = 1
    LINK = 2  # means nothing without the name of an interface
    PRIVATE = 3
    GLOBAL = 4


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def scope_of(ip: str) -> Scope:
    """That of an IPv4 or IPv6 address; NONE for other text."""
    found = _ip(ip)
    if found is None or found.is_multicast or found.is_unspecified:
        return Scope.NONE
    if found.is_loopback:
        return Scope.LOOPBACK
    if found.is_link_local:
        return Scope.LINK
    if found.is_reserved:
        return Scope.NONE
    return Scope.GLOBAL if found.is_global else Scope.PRIVATE


def may_tell(ip: str, scope: Scope) -> bool:
    """Whether one that is connected from there has use for the address `ip`, and may tell of it.

    What is near here is something else there: who is across the internet must not have this node knock at doors of
    its own network, nor be told of them.
    """
    return scope_of(ip) not in (Scope.NONE, Scope.LINK) and scope_of(ip) >= scope


def ip_of(address: object) -> str:
    """The IP address of a multiaddr; empty if it begins with none."""
    parts = str(address).split("/", 3)
    return parts[2] if len(parts) > 2 and parts[1] in ("ip4", "ip6") else ""


def holder_of(ip: str) -> str:
    """What counts as one address: an IPv4 address, but the /64 of an IPv6 one, all of which one machine can have."""
    found = _ip(ip)
    if found is None or found.version == 4 or found.is_loopback:
        return str(found or ip)
    return str(ipaddress.ip_network((found, 64), strict=False))


def range_of(ip: str) -> str:
    """Which addresses one person may well have all of: the /16 of an IPv4 address, the /32 of an IPv6 one.

    On one's own network everybody is in a range of their own.
    """
    found = _ip(ip)
    if found is None or scope_of(ip) is not Scope.GLOBAL:
        return ip
    return str(ipaddress.ip_network((found, 16 if found.version == 4 else 32), strict=False))


def resolve(address: NodeAddress) -> list[str]:
    """Multiaddrs, without peer id, that a name stands for at present: as the system says, hosts file included.

    Blocks, for as long as the system's resolver takes. Raises UnknownNameError.
    """
    if not address.is_name:
        return [f"/{address.kind}/{address.host}/tcp/{address.port}"]
    if address.port is None:
        return _records(address)
    try:
        found = socket.getaddrinfo(address.host, address.port, _FAMILIES[address.kind], socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter: no label of a name
        raise UnknownNameError(f"the name {address.host} cannot be resolved ({_why(error)})") from None
    hosts = dict.fromkeys((family, where[0]) for family, _, _, _, where in found)
    kinds = {socket.AF_INET: "ip4", socket.AF_INET6: "ip6"}
    texts = [f"/{kinds[family]}/{host}/tcp/{address.port}" for family, host in hosts if "%" not in str(host)]
    if not texts:
        raise UnknownNameError(f"the name {address.host} has no address of the kind {address.kind}")
    return texts[:MAX_FOUND]


def _records(address: NodeAddress) -> list[str]:
    """What the TXT records of a /dnsaddr say of this peer (https://github.com/multiformats/multiaddr, DNSADDR)."""
    import dns.exception  # comes with multiaddr
    import dns.resolver

    try:
        answer = dns.resolver.resolve(f"_dnsaddr.{address.host}", "TXT", lifetime=LOOKUP_SECONDS)
        said = [b"".join(record.strings).decode(errors="replace") for record in answer][: 16 * MAX_FOUND]
    except (dns.exception.DNSException, OSError, UnicodeError) as error:
        hint = "without /tcp/PORT it needs dnsaddr records"
        raise UnknownNameError(f"the name {address.host} cannot be resolved ({_why(error)}; {hint})") from None
    named = [read(text.removeprefix("dnsaddr=")) for text in said if text.startswith("dnsaddr=")]
    ours = [one for one in named if one and one.peer_id == address.peer_id and one.port is not None]
    if not ours:
        raise UnknownNameError(f"the records of {address.host} name no address of this peer")
    return [text for one in ours for text in resolve(one)][:MAX_FOUND]


def _why(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).rstrip(".") or type(error).__name__
