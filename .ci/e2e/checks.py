"""The list of checks, and what most of them do: 64 MiB down or up, or a page. The checks themselves are in the files
beside this one. A check is a function: the first line of its text is printed, and what it returns behind it. It fails
by an AssertionError that says what was seen."""

import hashlib

import clients
from backends import MIB
from clients import SOCKS, curl

BIG = 64 * MIB

CHECKS = []


def check(limit):
    """Registers a check that may take so many seconds."""
    def register(function):
        CHECKS.append((function, limit))
        return function

    return register


def speed(size, seconds):
    return f"{size / MIB / seconds:.0f} MiB/s"


def speeds(done):
    return ", ".join(f"{name} {speed(BIG, seconds)}" for name, seconds in done)


def download(world, way, kind, address=None):
    body = world.backends.body(BIG, 1)
    port = 443 if way[1] == "https" else 80
    out = world.path("download")
    outcome = curl(way, address or world.proxy.address, f"{world.name}:{port}/{kind}/{BIG}/1", "-f", "-o", out)
    assert outcome.code == 0, f"{way[0]}: {outcome}"
    assert clients.sha256(out) == hashlib.sha256(body).hexdigest(), f"{way[0]}: other bytes than the server's"
    return way[0], outcome.seconds


def upload(world, way, *flags):
    source = world.path("upload")
    body = world.backends.body(BIG, 2)
    clients.write_file(source, body)
    port = 443 if way[1] == "https" else 80
    outcome = curl(way, world.proxy.address, f"{world.name}:{port}/", "-f", "-X", "POST", "-T", source, *flags)
    assert outcome.code == 0, f"{way[0]}: {outcome}"
    assert outcome.stdout == hashlib.sha256(body).hexdigest(), f"{way[0]}: the server got other bytes"
    return way[0], outcome.seconds


def small_request(world, address=None, way=SOCKS, limit=30):
    """A page of 100 KB, and how long it took."""
    outcome = curl(way, address or world.proxy.address, f"{world.name}/bytes/100000/3", "-f", "-o", world.path("page"),
                   limit=limit)
    assert outcome.code == 0, str(outcome)
    assert clients.sha256(world.path("page")) == hashlib.sha256(world.backends.body(100_000, 3)).hexdigest()
    return outcome.seconds
