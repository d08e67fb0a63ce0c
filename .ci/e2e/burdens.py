"""Clients that are strange, many or slow: memory stays bounded, and the others are served."""

import random
import socket
import threading
import time

from backends import MIB
from checks import check, download, small_request, speed
from clients import FORWARD, SOCKS, connect, exactly

# A bound for the memory of each process in every situation here: a stream may fill a window of 16 MiB at each end,
# a relay's queues and the allocator's slack come on top.
MEMORY_BOUND = 128


@check(60)
def garbage(world):
    """garbage to the proxy's port harms nobody"""
    noise = random.Random(9)
    messages = [
        b"", b"\0", b"\x04\x01\0\x50\x7f\0\0\1\0", b"\x05", b"\x05\0", b"\x05\x01\xff", b"\x05\xff" + bytes(300),
        b"\x05\x01\0\x05\x01\0\x09", b"\x05\x01\0\x05\x02\0\x01\x7f\0\0\1\0\x50", b"\x05\x01\0\x05\x01\0\x03\0\0\x50",
        b"\x05\x01\0\x05\x01\0\x03\x04\xff\xfe\0\n\0\x50", b"\x05\x01\x02\x01\0\0", b"GET", b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"GET http:// HTTP/1.1\r\nHost: a\r\n\r\n", b"CONNECT : HTTP/1.1\r\n\r\n",
        b"CONNECT a:99999 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET http://a/ HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"A" * MIB,
        b"GET http://a/ HTTP/1.1\r\nA: " + b"b" * MIB,
        b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + noise.randbytes(600), b"\r\n" * 1000,
        *(noise.randbytes(noise.randrange(1, 2000)) for _ in range(50)),
    ]
    late = []

    def say(message, hang_up):
        host, port = world.proxy.address.rsplit(":", 1)
        try:
            with socket.create_connection((host, int(port)), 15) as sock:
                sock.sendall(message)
                if hang_up:
                    sock.shutdown(socket.SHUT_WR)
                # An answer is enough: what follows a decent HTTP answer may be another request.
                sock.recv(1 << 16)
        except TimeoutError:
            late.append(message[:40])
        except OSError:
            # Being reset is an answer as well.
            pass

    jobs = [threading.Thread(target=say, args=(m, hang_up), daemon=True) for m in messages for hang_up in (True, False)]
    start = time.monotonic()
    for job in jobs:
        job.start()
    small_request(world)
    for job in jobs:
        job.join(30)
    assert not late, f"{len(late)} connections were neither answered nor closed in 15 s: {late[:5]}"
    small_request(world)
    return f"{len(jobs)} connections, all answered or closed after {time.monotonic() - start:.1f} s"


@check(60)
def silent_connections(world):
    """1,000 silent connections at once: others are served, and the silent are cut after 10 s"""
    host, port = world.proxy.address.rsplit(":", 1)
    start = time.monotonic()
    silent = [socket.create_connection((host, int(port)), 10) for _ in range(1000)]
    try:
        seconds = small_request(world)
        for sock in silent:
            sock.settimeout(max(0.1, start + 25 - time.monotonic()))
            try:
                left = sock.recv(1)
            except ConnectionResetError:
                left = b""
            except TimeoutError:
                raise AssertionError("a silent connection was not cut in 25 s") from None
            assert left == b"", f"a silent client was told {left!r}"
        cut = time.monotonic() - start
    finally:
        for sock in silent:
            sock.close()
    return f"a page took {seconds:.2f} s meanwhile, all were cut after {cut:.1f} s"


@check(400)
def stalled_reader(world):
    """a reader stalls while the server offers 1 GiB: memory stays bounded, others are served"""
    processes = {"relay": world.relay.process, "exit": world.exit, "proxy": world.proxy}
    for process in processes.values():
        process.forget_peak()
    block = world.backends.body(MIB, 0)
    slowest, requests = 0.0, 0
    with connect(world.proxy.address, world.name, 19, 60) as sock:
        assert exactly(sock, MIB) == block, "other bytes than the server's"
        end = time.monotonic() + world.stall
        while time.monotonic() < end:
            slowest = max(slowest, small_request(world, way=(SOCKS, FORWARD)[requests % 2]))
            requests += 1
            time.sleep(1)
        offered = world.backends.generated // MIB
        download(world, SOCKS, "bytes")
        peaks = {name: process.memory() for name, process in processes.items()}
        start = time.monotonic()
        for _ in range(128):
            assert exactly(sock, MIB) == block, "other bytes than the server's after the stall"
        seconds = time.monotonic() - start
    text = ", ".join(f"{name} {peak:.0f} MiB" for name, peak in peaks.items())
    over = [name for name, peak in peaks.items() if peak >= MEMORY_BOUND]
    assert not over, f"more than {MEMORY_BOUND} MiB: {text}"
    assert offered < MEMORY_BOUND, f"{offered} MiB have left the server for a reader that took one"
    return (f"{world.stall} s; the server got rid of {offered} MiB; peaks: {text} (bound {MEMORY_BOUND} MiB); "
            f"{requests} pages meanwhile, slowest {slowest:.2f} s, and 64 MiB; "
            f"then read on at {speed(128 * MIB, seconds)}")


@check(60)
def memory_over_all(world):
    """what is resident after all this"""
    processes = {"relay": world.relay.process, "exit": world.exit, "proxy": world.proxy}
    return ", ".join(f"{name} {p.memory('VmRSS'):.0f} MiB (peak {p.memory():.0f})" for name, p in processes.items())
