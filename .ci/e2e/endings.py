"""How the processes end when they are asked to. These checks come last: they leave nothing running."""

import hashlib
import os
import signal
import time

import clients
from backends import MIB
from checks import BIG, check
from clients import SOCKS, connect, exactly
from processes import wait_until


@check(60)
def termination_drains(world):
    """SIGTERM lets an open download finish, then the proxy ends with 0; so do the exit and the relay of ours"""
    out = world.path("drained")
    body = world.backends.body(BIG, 1)
    start = time.monotonic()
    child = clients.start_curl(SOCKS, world.proxy.address, f"{world.name}/bytes/{BIG}/1", "-f", "-o", out)
    wait_until(lambda: clients.size_of(out) >= MIB, 30, "the first MiB")
    world.proxy.signal()
    world.exit.signal()
    asked = time.monotonic()
    outcome = clients.finish(child, start, 30)
    assert outcome.code == 0, f"the open download was cut: {outcome}"
    assert clients.sha256(out) == hashlib.sha256(body).hexdigest(), "other bytes than the server's"
    seen = []
    ours = [world.proxy, world.exit]
    if world.relay_kind == "embedded":
        # It would have taken the ground from under the two.
        for process in ours:
            process.wait(12)
        ours.append(world.relay.process)
        world.relay.process.signal()
    for process in ours:
        code = process.wait(12)
        assert code == 0, f"{process.label} ended with {code}"
        seen.append(f"{process.label} after {time.monotonic() - asked:.1f} s")
        assert not os.path.exists(process.info_path), f"{process.label} left its information file behind"
    return ", ".join(seen)


@check(90)
def termination_is_bounded(world):
    """SIGTERM with a connection that never ends: cut after the drain time of 10 s, with 0"""
    world.start_all()
    with connect(world.proxy.address, world.name, 25, 10) as sock:
        exactly(sock, 21)
        start = time.monotonic()
        world.proxy.signal()
        code = world.proxy.wait(13)
        seconds = time.monotonic() - start
    assert code == 0, f"the proxy ended with {code}"
    return f"{seconds:.1f} s"


@check(90)
def second_signal(world):
    """a second signal ends at once"""
    world.start_all()
    seen = []
    with connect(world.proxy.address, world.name, 25, 10) as sock:
        exactly(sock, 21)
        for process in (world.exit, world.proxy):
            process.signal()
            time.sleep(0.3)
            assert process.running(), f"{process.label} did not wait for its open connection"
            start = time.monotonic()
            process.signal(signal.SIGINT)
            code = process.wait(3)
            assert code in (130, 143), f"{process.label} ended with {code}"
            seen.append(f"{process.label} {code} after {time.monotonic() - start:.2f} s")
    return ", ".join(seen)
