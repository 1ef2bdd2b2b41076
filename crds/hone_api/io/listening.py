"""Listen on a port for IPv4 and IPv6, on machines with either or both.

A pod of a cluster with IPv6 has no IPv4 address, and the kubelet probes the pod's address. Every program of Hone that
listens in a pod opens its port here.
"""

import errno
import socket

EVERY_ADDRESS = ("", "::", "[::]", "*")
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)


def open_listener(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises OSError if the port is in use, or the host is not this machine.

    `host` "" or "::" means every address of both families; "0.0.0.0" every IPv4 address.
    """
    if host not in EVERY_ADDRESS:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    try:
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
    except OSError as error:
        if error.errno not in _NO_IPV6:
            raise
    except ValueError:  # a kernel that does not support both on one socket has no IPv6
        pass
    return socket.create_server(("0.0.0.0", port))


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, :PORT or [IPV6]:PORT. Raises ValueError that names what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"{text!r} is not of the form HOST:PORT, :PORT or [IPV6]:PORT")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if ":" in bare and bare == host:
        raise ValueError(f"{text!r} has an IPv6 address without brackets; write [{host}]:{port}")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """Return HOST:PORT for a URL, with brackets if the host is an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"
