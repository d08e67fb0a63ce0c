"""Relay, exit or client are killed in the middle: what can go on does, and nothing torn looks whole."""

import hashlib
import os
import signal
import time

import clients
from backends import MIB
from checks import BIG, check, small_request
from clients import FORWARD, SOCKS
from processes import Nws, wait_until


@check(120)
def relay_restart(world):
    """the relay is killed and restarted in the middle of 64 MiB: complete, checksum equal"""
    def broken(way):
        out = world.path("restart")
        if os.path.exists(out):
            os.remove(out)
        start = time.monotonic()
        child = clients.start_curl(way, world.proxy.address, f"{world.name}/close/{BIG}/1", "-f", "-o", out)
        wait_until(lambda: clients.size_of(out) >= 16 * MIB, 30, "the first 16 MiB")
        world.relay.process.kill()
        size = clients.size_of(out)
        assert size < BIG, "the download was over before the relay was killed"
        time.sleep(1)
        world.relay.start()
        outcome = clients.finish(child, start, 90)
        assert outcome.code == 0, str(outcome)
        expected = hashlib.sha256(world.backends.body(BIG, 1)).hexdigest()
        assert clients.sha256(out) == expected, "other bytes than the server's"
        return f"{way[0]}: killed at {size // MIB} MiB, complete after {outcome.seconds:.1f} s"

    return "; ".join(broken(way) for way in (SOCKS, FORWARD))


def killed_exit(world, way, back):
    """Kills the exit in the middle of a download without a length, which must not look like its end."""
    out = world.path("killed")
    if os.path.exists(out):
        os.remove(out)
    start = time.monotonic()
    child = clients.start_curl(way, world.quick_proxy.address, f"{world.name}/close/{BIG}/1", "-f", "-o", out)
    wait_until(lambda: clients.size_of(out) >= 8 * MIB, 30, "the first 8 MiB")
    world.exit.kill()
    killed = time.monotonic()
    size = clients.size_of(out)
    assert size < BIG, "the download was over before the exit was killed"
    try:
        if back:
            time.sleep(1)
            world.start_exit()
        outcome = clients.finish(child, start, 40)
    finally:
        if not world.exit.running():
            world.start_exit()
    seconds = time.monotonic() - killed
    assert outcome.code != 0, f"after {clients.size_of(out)} bytes the client was told that this is all"
    return f"{way[0]}: curl {outcome.code} after {seconds:.1f} s"


@check(150)
def exit_killed(world):
    """the exit is killed in the middle of a download and comes back: an error, not an end (probe, stall: 5 s)"""
    return "; ".join(killed_exit(world, way, back=True) for way in (SOCKS, FORWARD))


@check(150)
def exit_gone(world):
    """the exit is killed in the middle of a download and stays away: an error, not an end (probe, stall: 5 s)"""
    return "; ".join(killed_exit(world, way, back=False) for way in (SOCKS, FORWARD))


@check(60)
def exit_back(world):
    """after the exit's restarts its name is the same and new requests are served"""
    return f"{small_request(world):.2f} s"


@check(90)
def client_killed(world):
    """the client is killed in the middle of an upload: the server sees the connection end"""
    seen = []
    source = clients.write_file(world.path("upload"), world.backends.body(BIG, 2))
    for way in (SOCKS, FORWARD):
        before = len(world.backends.uploads)
        # Slow enough to be in the middle whatever the machine.
        child = clients.start_curl(way, world.proxy.address, f"{world.name}/", "-X", "POST", "-T", source,
                                   "--limit-rate", "16M")
        wait_until(lambda: world.backends.uploads[before:] and world.backends.uploads[before]["received"] > 4 * MIB,
                   30, "the first 4 MiB at the server")
        child.kill()
        child.communicate()
        killed = time.monotonic()
        upload_seen = world.backends.uploads[before]
        how = wait_until(lambda: upload_seen["how"], 15, f"{way[0]}: the end of the connection at the server")
        assert how != "complete", "the server takes the torn upload for a whole one"
        seen.append(f"{way[0]}: {how} after {time.monotonic() - killed:.2f} s")
    return "; ".join(seen)


@check(120)
def reload_under_load(world):
    """SIGHUP to all in the middle of 64 MiB and of a row of small requests, with other rules each time: nothing is lost"""
    config, out = world.path("reload.toml"), world.path("reloaded")

    def rules(number):
        with open(config, "w") as file:
            file.write("".join(f'[[proxy.rule]]\nto = "{index}.example"\nvia = "reject"\n' for index in range(number)))

    rules(1)
    proxy = Nws(world, "reloaded", ["proxy", "--listen", "127.0.0.1:0", "--config", config])
    start = time.monotonic()
    child = clients.start_curl(SOCKS, proxy.address, f"{world.name}/bytes/{BIG}/1", "-f", "-o", out)
    wait_until(lambda: clients.size_of(out) >= MIB, 30, "the first MiB")
    reloads = 0
    while reloads < 10 or child.poll() is None:
        reloads += 1
        rules(1 + reloads % 5)
        for process in (proxy, world.exit, *([world.relay.process] if world.relay_kind == "embedded" else [])):
            process.signal(signal.SIGHUP)
        small_request(world, proxy.address)
        assert reloads < 500, "the download does not end"
    outcome = clients.finish(child, start, 60)
    assert outcome.code == 0, str(outcome)
    expected = hashlib.sha256(world.backends.body(BIG, 1)).hexdigest()
    assert clients.sha256(out) == expected, "other bytes than the server's"
    with open(proxy.log, errors="replace") as log:
        heard = log.read().count("was read again")
    assert heard, "the proxy has not read its configuration again"
    proxy.signal()
    assert proxy.wait(12) == 0
    return f"{reloads} reloads, {heard} heard by the proxy, {outcome.seconds:.1f} s"
