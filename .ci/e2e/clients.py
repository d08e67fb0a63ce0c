"""The clients before the proxy: curl as a user types it, and a SOCKS client of our own for what curl cannot do."""

import hashlib
import os
import re
import socket
import struct
import subprocess
import time

from processes import without_proxies


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


# How curl reaches the proxy: (name, scheme of the URL, flags for an address).
SOCKS = ("SOCKS5", "http", lambda address: ["--socks5-hostname", address])
SOCKS_TLS = ("SOCKS5, TLS behind", "https", lambda address: ["--socks5-hostname", address, "-k"])
FORWARD = ("HTTP forwarding", "http", lambda address: ["-x", f"http://{address}"])
TUNNEL = ("HTTP CONNECT", "http", lambda address: ["-x", f"http://{address}", "--proxytunnel"])
TUNNEL_TLS = ("HTTP CONNECT, TLS behind", "https", lambda address: ["-x", f"http://{address}", "-k"])


class Outcome:
    """How a curl ended."""

    def __init__(self, code, stdout, stderr, seconds):
        self.code, self.stdout, self.stderr, self.seconds = code, stdout, stderr, seconds

    @property
    def socks_reply(self):
        """The code of the proxy's SOCKS reply, from curl's message."""
        found = re.search(r"complete SOCKS5 connection to \S+ \((\d+)\)", self.stderr)
        return int(found.group(1)) if found else None

    @property
    def nws_error(self):
        found = re.search(r"(?im)^nws-error: *(\S+)", self.stdout)
        return found.group(1) if found else None

    @property
    def status(self):
        """The status of the last answer in the headers that `-D -` prints."""
        found = re.findall(r"(?m)^HTTP/1\.[01] (\d+)", self.stdout)
        return int(found[-1]) if found else None

    def __str__(self):
        return f"curl ended with {self.code} after {self.seconds:.1f} s: {self.stderr.strip()[:300]}"


def start_curl(way, address, url, *flags):
    """A curl under way; `url` is without its scheme."""
    _, scheme, proxy = way
    command = ["curl", "-q", "-sS", *proxy(address), *flags, f"{scheme}://{url}"]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env=without_proxies())


def curl(way, address, url, *flags, limit=120):
    """Runs curl to its end, which must come within the limit."""
    start = time.monotonic()
    child = start_curl(way, address, url, *flags)
    return finish(child, start, limit)


def finish(child, start, limit):
    try:
        stdout, stderr = child.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise AssertionError(f"curl still runs after {limit} s: {child.args[-1][-60:]}") from None
    return Outcome(child.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"),
                   time.monotonic() - start)


class Refused(Exception):
    """The proxy's SOCKS reply, if it is not 00."""

    def __init__(self, reply):
        super().__init__(f"SOCKS reply {reply:02x}")
        self.reply = reply


def connect(address, host, port, timeout=60):
    """A socket through the proxy, by SOCKS5 with a domain name."""
    proxy_host, proxy_port = address.rsplit(":", 1)
    sock = socket.create_connection((proxy_host, int(proxy_port)), timeout)
    try:
        sock.sendall(b"\x05\x01\x00")
        assert exactly(sock, 2) == b"\x05\x00", "the proxy does not offer SOCKS5 without authentication"
        name = host.encode()
        sock.sendall(b"\x05\x01\x00\x03" + bytes([len(name)]) + name + struct.pack(">H", port))
        _, reply, _, kind = exactly(sock, 4)
        if reply:
            raise Refused(reply)
        exactly(sock, {1: 4, 4: 16}[kind] + 2)
        return sock
    except BaseException:
        sock.close()
        raise


def exactly(sock, size):
    """So many bytes, or an error."""
    parts = []
    while size:
        part = sock.recv(min(size, 1 << 18))
        if not part:
            raise AssertionError("the connection ended early")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def to_the_end(sock):
    """Everything until the other side ends."""
    parts = []
    while part := sock.recv(1 << 18):
        parts.append(part)
    return b"".join(parts)


def write_file(path, data):
    with open(path, "wb") as file:
        file.write(data)
    return path


def size_of(path):
    return os.path.getsize(path) if os.path.exists(path) else 0
