"""`nws connect` and `nws forward`, as the clients that people have use them: ssh, scp, git and curl."""

import hashlib
import os
import shlex
import subprocess
import time

import clients
from backends import MIB
from checks import check, speed
from processes import Nws, without_proxies


def ssh_options(world, command):
    sshd = world.backends.sshd
    assert sshd, "no sshd on this machine: install openssh-server"
    return ["-F", "none", "-i", sshd.client_key, "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new",
            "-o", f"UserKnownHostsFile={sshd.known_hosts}", "-o", f"ProxyCommand={command}"]


def run(*command, limit=60, **more):
    done = subprocess.run(command, capture_output=True, timeout=limit, env=without_proxies(), **more)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}: {done.stderr.decode()[-400:]}"
    assert b"nws:" not in done.stderr, f"{command[0]}: {done.stderr.decode()[-400:]}"
    return done.stdout


def ways(world):
    """By itself and through the proxy, in both spellings that ssh's manual suggests."""
    nws = shlex.quote(world.nws)
    return {"alone": f"{nws} connect --alone %h:%p", "through the proxy": f"{nws} connect --via {world.proxy.address} %h %p"}


@check(60)
def ssh_proxy_command(world):
    """ssh -o ProxyCommand='nws connect …' to a real sshd"""
    target = f"{world.backends.sshd.user}@{world.name}"
    done = []
    for way, command in ways(world).items():
        start = time.monotonic()
        said = run("ssh", *ssh_options(world, command), target, "cat; echo through the tunnel >&2; exit 0", input=b"\0\xff\n")
        assert said == b"\0\xff\n", said
        done.append(f"{way} {time.monotonic() - start:.1f} s")
    failed = subprocess.run(["ssh", *ssh_options(world, command), target, "exit 7"], capture_output=True, timeout=60)
    assert failed.returncode == 7, f"the exit code of the far command became {failed.returncode}"
    return ", ".join(done)


@check(300)
def scp(world):
    """scp of 100 MiB by nws connect, checksums equal"""
    size = 100 * MIB
    source, copy = world.path("scp-100"), world.path("scp-100-copy")
    clients.write_file(source, world.backends.body(size, 6))
    done = []
    for way, command in ways(world).items():
        start = time.monotonic()
        run("scp", "-q", *ssh_options(world, command), source, f"{world.backends.sshd.user}@{world.name}:{copy}", limit=140)
        seconds = time.monotonic() - start
        assert clients.sha256(source) == clients.sha256(copy), f"scp {way} copied other bytes"
        os.remove(copy)
        done.append(f"{way} {speed(size, seconds)}")
    return ", ".join(done)


@check(120)
def git_clone(world):
    """git clone and push over ssh by nws connect"""
    bare, work, again = world.path("repository.git"), world.path("work"), world.path("again")
    git = ["git", "-c", "user.name=End", "-c", "user.email=end@example.com", "-c", "init.defaultBranch=main",
           "-c", "safe.directory=*"]
    run(*git, "init", "-q", "--bare", bare)
    run(*git, "clone", "-q", bare, work)
    clients.write_file(os.path.join(work, "bytes"), world.backends.body(4 * MIB, 8))
    run(*git, "-C", work, "add", "bytes")
    run(*git, "-C", work, "commit", "-q", "-m", "bytes")
    ssh = shlex.join(["ssh", *ssh_options(world, ways(world)["alone"])])
    url = f"ssh://{world.backends.sshd.user}@{world.name}:22{bare}"
    remote = [*git, "-c", f"core.sshCommand={ssh}"]
    run(*remote, "-C", work, "push", "-q", url, "HEAD:refs/heads/main", limit=100)
    run(*remote, "clone", "-q", "-b", "main", url, again, limit=100)
    assert clients.sha256(os.path.join(again, "bytes")) == clients.sha256(os.path.join(work, "bytes"))
    run(*git, "-C", again, "fsck", "--strict")
    return "4 MiB there and back"


@check(60)
def forward(world):
    """nws forward: curl to a local port"""
    forwarding = Nws(world, "forward", ["forward", f"0={world.name}:80", "--alone"])
    expected = hashlib.sha256(world.backends.body(MIB, 9)).hexdigest()
    page = run("curl", "-q", "-sSf", f"http://{forwarding.address}/bytes/{MIB}/9")
    assert hashlib.sha256(page).hexdigest() == expected, "other bytes than the server's"
    forwarding.signal()
    assert forwarding.wait(15) == 0
