"""The processes under test: started, waited for, measured and ended here. What they have to do is in the checks."""

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import time

# What nws processes get whatever the tester's own limit is: the soft limit that most systems ship.
OPEN_FILES = 1024


def without_proxies():
    """The environment, less what would send curl or nws elsewhere or change a default under test."""
    def foreign(name):
        return name.lower().endswith("_proxy") or name.startswith("NWS_") or name == "RUST_LOG"

    return {name: value for name, value in os.environ.items() if not foreign(name)}


def free_port():
    """A port that nobody listens on now; for programs that cannot tell which port they took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, seconds, what):
    """The first true value of the condition; an error that names the thing when it stays away."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.01)


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


class Process:
    """A child with its log in a file."""

    def __init__(self, label, command, log, env=None):
        self.label = label
        self.log = log
        self.command = command
        environment = without_proxies()
        environment.update(env or {})
        with open(log, "ab") as output:
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment,
                preexec_fn=usual_limits
            )

    @property
    def pid(self):
        return self.child.pid

    def running(self):
        return self.child.poll() is None

    def memory(self, field="VmHWM"):
        """A figure of /proc in MiB: VmHWM is the most that was resident, VmRSS what is now."""
        with open(f"/proc/{self.pid}/status") as status:
            for line in status:
                if line.startswith(field + ":"):
                    return int(line.split()[1]) / 1024
        raise AssertionError(f"{self.label} has no {field}; it has ended")

    def forget_peak(self):
        """Starts VmHWM anew."""
        with open(f"/proc/{self.pid}/clear_refs", "w") as clear:
            clear.write("5")

    def kill(self):
        """SIGKILL: no chance to say good-bye."""
        self.child.kill()
        self.child.wait()

    def signal(self, number=signal.SIGTERM):
        self.child.send_signal(number)

    def wait(self, seconds):
        """The exit code; an error if it has not ended by then."""
        try:
            return self.child.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.label} still runs {seconds} s after it should have ended") from None


def usual_limits():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Nws(Process):
    """A process of nws that is ready: it has written its information file."""

    def __init__(self, world, label, arguments, env=None):
        self.info_path = world.path(label + ".json")
        if os.path.exists(self.info_path):
            os.remove(self.info_path)
        log_filter = ["--log", world.log_filter]
        super().__init__(label, [world.nws, *log_filter, *arguments, "--info-file", self.info_path],
                         world.path(label + ".log"), env)
        world.processes.append(self)

        def ready():
            if not self.running():
                raise AssertionError(f"{label} ended with {self.child.returncode} instead of getting ready")
            return os.path.exists(self.info_path)

        wait_until(ready, 15, f"the information file of {label}")
        with open(self.info_path) as file:
            self.info = json.load(file)
        assert self.info["pid"] == self.pid, f"{label} gives a foreign process id: {self.info}"

    @property
    def address(self):
        return self.info["listen"][0]

    @property
    def port(self):
        return int(self.address.rsplit(":", 1)[1])


class EmbeddedRelay:
    """`nws relay`, which keeps its port over restarts."""

    def __init__(self, world):
        self.world = world
        self.process = None
        self.port = 0

    def start(self):
        self.process = Nws(self.world, "relay", ["relay", "--listen", f"127.0.0.1:{self.port}"])
        self.port = self.process.port


class NostrRsRelay:
    """nostr-rs-relay with its default limits, its database in memory."""

    def __init__(self, world, binary):
        self.world = world
        self.binary = shutil.which(binary)
        assert self.binary, f"no nostr-rs-relay at {binary}: .ci/run installs it, or name it with --nostr-rs-relay"
        self.process = None
        self.port = free_port()
        self.config = world.path("nostr-rs-relay.toml")
        with open(self.config, "w") as file:
            file.write(f'[network]\naddress = "127.0.0.1"\nport = {self.port}\n\n[database]\nin_memory = true\n')

    def start(self):
        command = [self.binary, "--config", self.config, "--db", self.world.directory]
        self.process = Process("relay", command, self.world.path("relay.log"), {"RUST_LOG": "warn"})
        self.world.processes.append(self.process)
        wait_until(lambda: self.process.running() and listens(self.port), 15, "nostr-rs-relay listening")
