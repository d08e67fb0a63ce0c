"""A name server that knows every name: its address is 127.0.0.1, and it has nothing else. Usage: names.py ADDRESS PORT."""

import socket
import struct
import sys

A, AAAA = 1, 28


def answer(question):
    """The answer to a message with one question, as RFC 1035 has it."""
    end = 12
    while question[end]:
        end += 1 + question[end]
    kind, = struct.unpack("!H", question[end + 1:end + 3])
    records = b"\xc0\x0c" + struct.pack("!HHIH", A, 1, 60, 4) + socket.inet_aton("127.0.0.1") if kind == A else b""
    return question[:2] + struct.pack("!5H", 0x8180, 1, bool(records), 0, 0) + question[12:end + 5] + records


def main():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((sys.argv[1], int(sys.argv[2])))
        while True:
            question, client = server.recvfrom(4096)
            server.sendto(answer(question), client)


if __name__ == "__main__":
    main()
