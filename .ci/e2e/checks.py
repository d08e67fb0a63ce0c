"""What a user must be able to rely on, one function each. The first line of its text is what is printed; what it
returns is printed behind it. A check fails by an AssertionError that says what was seen."""

import hashlib
import os
import random
import signal
import socket
import subprocess
import threading
import time

import clients
from backends import MIB
from clients import FORWARD, SOCKS, SOCKS_TLS, TUNNEL, TUNNEL_TLS, connect, curl, exactly, to_the_end
from processes import free_port, wait_until

BIG = 64 * MIB
# A bound for the memory of each process in every situation here: a stream may fill a window of 16 MiB at each end,
# a relay's queues and the allocator's slack come on top.
MEMORY_BOUND = 128
# The generator of secp256k1: a valid public key that no exit here has.
NOBODY = "79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"

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


@check(60)
def a_page(world):
    """a page comes through, by SOCKS5 and by HTTP"""
    return ", ".join(f"{way[0]} {small_request(world, way=way):.2f} s" for way in (SOCKS, FORWARD, TUNNEL))


@check(300)
def downloads(world):
    """64 MiB down, checksums equal"""
    return speeds([download(world, way, "bytes") for way in (SOCKS, FORWARD, TUNNEL, TUNNEL_TLS, SOCKS_TLS)])


@check(300)
def uploads(world):
    """64 MiB up, checksums equal"""
    done = [upload(world, way) for way in (SOCKS, FORWARD, TUNNEL, TUNNEL_TLS, SOCKS_TLS)]
    name, seconds = upload(world, FORWARD, "-H", "Transfer-Encoding: chunked")
    return speeds([*done, (name + " chunked", seconds)])


@check(200)
def without_length(world):
    """64 MiB without a length, ended by the server's close"""
    return speeds([download(world, way, "close") for way in (SOCKS, FORWARD, TUNNEL_TLS)])


@check(120)
def parallel(world):
    """200 requests in parallel, all correct"""
    size = 65_536
    expected = {seed: hashlib.sha256(world.backends.body(size, seed)).hexdigest() for seed in range(1000, 1200)}
    start = time.monotonic()
    running = {}
    for seed in expected:
        way = (SOCKS, FORWARD, TUNNEL, TUNNEL_TLS)[seed % 4]
        port = 443 if way[1] == "https" else 80
        out = world.path(f"parallel-{seed}")
        running[seed] = out, clients.start_curl(
            way, world.proxy.address, f"{world.name}:{port}/bytes/{size}/{seed}", "-f", "-o", out)
    wrong = []
    for seed, (out, child) in running.items():
        outcome = clients.finish(child, start, 100)
        if outcome.code or clients.sha256(out) != expected[seed]:
            wrong.append(str(outcome))
        if os.path.exists(out):
            os.remove(out)
    assert not wrong, f"{len(wrong)} of 200 went wrong, first: {wrong[0]}"
    return f"{time.monotonic() - start:.1f} s for all"


@check(30)
def server_first(world):
    """a server that speaks first is heard"""
    with connect(world.proxy.address, world.name, 25, 10) as sock:
        greeting = exactly(sock, 21)
    assert greeting == b"220 you are welcome\r\n", greeting


@check(90)
def ssh(world):
    """ssh and scp through the proxy, to a real sshd"""
    sshd = world.backends.sshd
    assert sshd, "no sshd on this machine: install openssh-server"
    host, port = world.proxy.address.rsplit(":", 1)
    with connect(world.proxy.address, world.name, 22, 10) as sock:
        banner = exactly(sock, 8)
    assert banner == b"SSH-2.0-", banner
    options = ["-F", "none", "-i", sshd.client_key, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new",
               "-o", f"UserKnownHostsFile={sshd.known_hosts}", "-o", f"ProxyCommand=nc -X 5 -x {host}:{port} %h %p"]
    target = f"{sshd.user}@{world.name}"

    def run(*command):
        done = subprocess.run(command, capture_output=True, timeout=60)
        assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {done.stderr.decode()[-400:]}"
        return done.stdout

    said = run("ssh", *options, target, "echo through the tunnel")
    assert said == b"through the tunnel\n", said
    source, copy = world.path("scp-source"), world.path("scp-copy")
    clients.write_file(source, world.backends.body(8 * MIB, 4))
    run("scp", "-q", *options, source, f"{target}:{copy}")
    assert clients.sha256(source) == clients.sha256(copy), "scp copied other bytes"
    return "command, and 8 MiB by scp"


@check(60)
def half_close(world):
    """a half-close: send, shut down, read the answer"""
    def answer_to(data):
        with connect(world.proxy.address, world.name, 7, 30) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            return to_the_end(sock).decode()

    for size in (0, 1, 5 * MIB):
        data = world.backends.body(size, 5)
        expected = f"{size} {hashlib.sha256(data).hexdigest()}\n"
        answer = answer_to(data)
        assert answer == expected, f"{size} bytes: {answer!r}"
    host, port = world.proxy.address.rsplit(":", 1)
    done = subprocess.run(["nc", "-N", "-X", "5", "-x", f"{host}:{port}", world.name, "7"], input=b"x",
                          capture_output=True, timeout=30)
    assert done.stdout.decode().startswith("1 2d711642b726b044"), f"nc -N heard {done.stdout!r} {done.stderr!r}"
    return "0 bytes, 1 byte, 5 MiB, and nc -N"


def refusal(world, url, reply, status, code, within, address=None):
    """One failure in the three ways a client meets it: SOCKS reply, HTTP status, status of CONNECT."""
    address = address or world.proxy.address
    seen = []
    outcome = curl(SOCKS, address, url, limit=within + 5)
    assert outcome.code == 97, f"SOCKS: {outcome}"
    assert outcome.socks_reply == reply, f"SOCKS reply {outcome.socks_reply}, not {reply}: {outcome}"
    seen.append(outcome.seconds)
    browser = ["-H", "Accept: text/html,*/*;q=0.8", "-o", world.path("refusal.html")]
    outcome = curl(FORWARD, address, url, "-D", "-", *browser, limit=within + 5)
    assert (outcome.status, outcome.nws_error) == (status, code), f"GET: {outcome.status} {outcome.nws_error} {outcome}"
    with open(world.path("refusal.html")) as page:
        assert "<!doctype html>" in page.read().lower(), "no page for a browser"
    seen.append(outcome.seconds)
    outcome = curl(TUNNEL, address, url, "-D", "-", limit=within + 5)
    assert outcome.code == 56, f"CONNECT: {outcome}"
    assert (outcome.status, outcome.nws_error) == (status, code), f"CONNECT: {outcome.status} {outcome.nws_error}"
    seen.append(outcome.seconds)
    assert max(seen) <= within, f"took {max(seen):.1f} s, not {within} s at most"
    return f"reply {reply:02}, {status} {code}, {max(seen):.2f} s"


@check(60)
def no_such_service(world):
    """no such service: denied"""
    return refusal(world, f"{world.name}:82/", 2, 403, "denied", 5)


@check(60)
def service_down(world):
    """the service is not running: refused"""
    return refusal(world, f"{world.name}:81/", 5, 502, "refused", 5)


@check(60)
def bad_names(world):
    """a name that is no name: host-unreachable"""
    label = world.name.split(".")[1]
    for name in ("nonsense.nostr", f"{label[:-1]}.nostr", f"xx.{label}.nostr"):
        seen = refusal(world, f"{name}/", 4, 502, "host-unreachable", 5)
    return seen


@check(60)
def clear_net(world):
    """names and addresses of the clear net: denied"""
    for name in ("example.com", "127.0.0.1", "nostr"):
        seen = refusal(world, f"{name}/", 2, 403, "denied", 5)
    return seen


@check(90)
def exit_not_running(world):
    """the exit is not running: timeout (open_timeout 6 s)"""
    name = world.encode_name(NOBODY, world.relay_url)
    return refusal(world, f"{name}/", 6, 504, "timeout", 8, world.quick_proxy.address)


@check(90)
def relay_not_running(world):
    """the relay is not running: network-unreachable (open_timeout 6 s)"""
    name = world.encode_name(NOBODY, f"ws://127.0.0.1:{free_port()}")
    return refusal(world, f"{name}/", 3, 502, "network-unreachable", 8, world.quick_proxy.address)


@check(60)
def garbage(world):
    """garbage to the proxy's port harms nobody"""
    noise = random.Random(9)
    messages = [
        b"", b"\0", b"\x04\x01\0\x50\x7f\0\0\1\0", b"\x05", b"\x05\0", b"\x05\x01\xff", b"\x05\xff" + bytes(300),
        b"\x05\x01\0\x05\x01\0\x09", b"\x05\x01\0\x05\x02\0\x01\x7f\0\0\1\0\x50", b"\x05\x01\0\x05\x01\0\x03\0\0\x50",
        b"\x05\x01\0\x05\x01\0\x03\x04\xff\xfe\0\n\0\x50", b"\x05\x01\x02\x01\0\0", b"GET", b"GET /\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"GET http:// HTTP/1.1\r\nHost: a\r\n\r\n", b"CONNECT : HTTP/1.1\r\n\r\n",
        b"CONNECT a:99999 HTTP/1.1\r\nHost: a\r\n\r\n", b"GET http://a/ HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"A" * MIB, b"GET http://a/ HTTP/1.1\r\nA: " + b"b" * MIB,
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
    """the exit is killed in the middle of a download and comes back: an error, not an end (probe and stall times 5 s)"""
    return "; ".join(killed_exit(world, way, back=True) for way in (SOCKS, FORWARD))


@check(150)
def exit_gone(world):
    """the exit is killed in the middle of a download and stays away: an error, not an end (the same times)"""
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
    return (f"{world.stall} s; the server got rid of {offered} MiB; peaks: {text} (bound {MEMORY_BOUND} MiB); {requests} pages "
            f"meanwhile, slowest {slowest:.2f} s, and 64 MiB; then read on at {speed(128 * MIB, seconds)}")


@check(60)
def memory_over_all(world):
    """what is resident after all this"""
    processes = {"relay": world.relay.process, "exit": world.exit, "proxy": world.proxy}
    return ", ".join(f"{name} {p.memory('VmRSS'):.0f} MiB (peak {p.memory():.0f})" for name, p in processes.items())


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
