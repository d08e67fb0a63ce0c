"""A crowd at a public address: silent ones, slow ones, random bytes, wrong keys, wrong TLS greetings.

Usage: strangers.py ADDRESS PORT COUNT. Ends with 0 when every one of them has been cut.
"""

import os
import resource
import socket
import ssl
import sys
import threading
import time
import uuid


def slow(stranger):
    """One right byte a second."""
    try:
        for byte in b"0123456789abcdef" * 2:
            stranger.sendall(bytes([byte]))
            time.sleep(1)
    except OSError:
        pass


CONTEXT = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def say(stranger, number):
    kind = number % 6
    if kind == 1:
        stranger.sendall(os.urandom(100))
    elif kind == 2:
        stranger.sendall(str(uuid.uuid4()).encode())
    elif kind == 3:
        stranger.sendall(b"\x16\x03\x01\x02\x00\x01")
    elif kind == 4 and number < 100:
        threading.Thread(target=slow, args=(stranger,), daemon=True).start()
    elif kind == 5:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        greeting = CONTEXT.wrap_bio(incoming, outgoing, server_hostname=os.urandom(16).hex() + ".invalid")
        try:
            greeting.do_handshake()
        except ssl.SSLWantReadError:
            stranger.sendall(outgoing.read())


def is_cut(stranger):
    stranger.settimeout(20)
    try:
        while stranger.recv(4096):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def main():
    address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, count + 100), hard))
    strangers = []
    for number in range(count):
        stranger = socket.create_connection((address, port), 10)
        try:
            say(stranger, number)
        except OSError:
            pass
        strangers.append(stranger)
    print("all have come", flush=True)
    if not all([is_cut(stranger) for stranger in strangers]):
        print("some were not cut", flush=True)
        return 1
    print("all were cut", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
