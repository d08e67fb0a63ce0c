"""The services behind the exit: a web server with and without TLS, raw TCP servers, and a real sshd."""

import getpass
import hashlib
import http.server
import os
import random
import shutil
import socketserver
import ssl
import subprocess
import threading

from processes import Process, free_port, listens, wait_until

MIB = 1 << 20
# What a stalled reader is offered.
OFFER = 1024 * MIB
BLOCK = 64 * 1024


def content(size, seed=0):
    """So many bytes that nothing can compress or guess; the same ones for the same seed."""
    return random.Random(seed).randbytes(size)


class Pages(http.server.BaseHTTPRequestHandler):
    """GET /bytes/SIZE/SEED with a length, /close/SIZE/SEED without; POST answers the SHA-256 of what it was sent."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_GET(self):
        _, kind, size, seed = self.path.split("/")
        body = self.server.backends.body(int(size), int(seed))
        self.send_response(200)
        if kind == "close":
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        digest = hashlib.sha256()
        upload = {"received": 0, "how": None}
        self.server.backends.uploads.append(upload)
        try:
            for part in self.body_parts():
                upload["received"] += len(part)
                digest.update(part)
            upload["how"] = "complete"
        except OSError as error:
            upload["how"] = type(error).__name__
            self.close_connection = True
            return
        answer = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def body_parts(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            yield from self.exactly(int(self.headers["Content-Length"]))
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield from self.exactly(size)
            self.rfile.readline()
        self.rfile.readline()

    def exactly(self, size):
        while size:
            part = self.rfile.read1(min(size, BLOCK))
            if not part:
                raise EarlyEnd("the connection ended in the middle of the body")
            size -= len(part)
            yield part


class EarlyEnd(OSError):
    """A connection that ended in good order before its time."""


class WebServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *_):
        # Clients that vanish are part of the checks.
        pass


class RawServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 512

    def handle_error(self, *_):
        pass


class Greeter(socketserver.BaseRequestHandler):
    """Speaks first, then waits for the client to end."""

    def handle(self):
        self.request.sendall(b"220 you are welcome\r\n")
        while self.request.recv(BLOCK):
            pass


class Digester(socketserver.BaseRequestHandler):
    """Reads to the end of the client's direction, and only then answers: length and SHA-256."""

    def handle(self):
        digest, length = hashlib.sha256(), 0
        while part := self.request.recv(BLOCK):
            digest.update(part)
            length += len(part)
        self.request.sendall(f"{length} {digest.hexdigest()}\n".encode())


class Generator(socketserver.BaseRequestHandler):
    """Offers 1 GiB: the same MiB over and over."""

    def handle(self):
        backends = self.server.backends
        block = backends.body(MIB, 0)
        view, offered = memoryview(block), 0
        while offered < OFFER:
            taken = self.request.send(view[offered % MIB:])
            offered += taken
            backends.generated = offered


class Backends:
    """All of them, on free ports of this machine, in threads of this process; sshd beside it."""

    def __init__(self, world):
        self.world = world
        self.bodies = {}
        self.lock = threading.Lock()
        # What became of each POST, in the order in which they began.
        self.uploads = []
        # How much the generator's last client has taken off it.
        self.generated = 0
        self.ports = {
            80: self.serve(WebServer, Pages),
            443: self.serve(WebServer, Pages, self.tls()),
            7: self.serve(RawServer, Digester),
            19: self.serve(RawServer, Generator),
            25: self.serve(RawServer, Greeter),
            # Nobody listens there.
            81: free_port(),
        }
        self.sshd = Sshd(world) if shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin") else None
        if self.sshd:
            self.ports[22] = self.sshd.port

    def body(self, size, seed):
        with self.lock:
            if (size, seed) not in self.bodies:
                self.bodies[size, seed] = content(size, seed)
            return self.bodies[size, seed]

    def services(self):
        return [part for port, own in self.ports.items() for part in ("--service", f"{port}=127.0.0.1:{own}")]

    def serve(self, kind, handler, tls=None):
        server = kind(("127.0.0.1", 0), handler)
        server.backends = self
        if tls:
            # The handshake belongs to the thread of the connection, not to the one that accepts.
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server.server_address[1]

    def tls(self):
        key, certificate = self.world.path("tls.key"), self.world.path("tls.crt")
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=end-to-end"],
            check=True, capture_output=True, timeout=60,
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context


class Sshd:
    """A real sshd for the user who runs this, with keys of its own."""

    def __init__(self, world):
        self.port = free_port()
        self.user = getpass.getuser()
        self.client_key = world.path("ssh_client")
        self.known_hosts = world.path("ssh_known_hosts")
        host_key = world.path("ssh_host")
        for key in (host_key, self.client_key):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=60)
        config = world.path("sshd_config")
        with open(config, "w") as file:
            file.write(
                f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {host_key}\nPidFile none\n"
                f"AuthorizedKeysFile {self.client_key}.pub\nStrictModes no\nPasswordAuthentication no\n"
                f"PermitRootLogin prohibit-password\nUsePAM {'yes' if os.geteuid() == 0 else 'no'}\n"
                f"Subsystem sftp internal-sftp\n"
            )
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        sshd = shutil.which("sshd", path=os.environ["PATH"] + ":/usr/sbin")
        self.process = Process("sshd", [sshd, "-D", "-e", "-f", config], world.path("sshd.log"))
        world.processes.append(self.process)
        wait_until(lambda: self.process.running() and listens(self.port), 15, "sshd listening")
