"""What must come through, and unharmed."""

import hashlib
import os
import socket
import subprocess
import time

import clients
from backends import MIB
from checks import check, download, small_request, speeds, upload
from clients import FORWARD, SOCKS, SOCKS_TLS, TUNNEL, TUNNEL_TLS, connect, exactly, to_the_end


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
