"""A file server that costs next to nothing: the kernel sends the file. Usage: files.py ADDRESS PORT DIRECTORY."""

import os
import socket
import sys
import threading


def serve(client, directory):
    with client, client.makefile("rb") as requests:
        while True:
            first = requests.readline().decode("latin-1").split()
            if len(first) < 2:
                return
            start, wanted = 0, None
            while (line := requests.readline()) not in (b"\r\n", b""):
                name, _, value = line.decode("latin-1").partition(":")
                if name.lower() == "range":
                    low, _, high = value.strip().removeprefix("bytes=").partition("-")
                    start, wanted = int(low), int(high) + 1 - int(low)
            with open(os.path.join(directory, os.path.basename(first[1])), "rb") as file:
                length = os.fstat(file.fileno()).st_size - start if wanted is None else wanted
                status = "200 OK" if wanted is None else "206 Partial Content"
                client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n".encode())
                if first[0] == "GET":
                    client.sendfile(file, start, length)


def main():
    address, port, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    listener = socket.create_server((address, port), backlog=128)
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def attempt(client=client):
            try:
                serve(client, directory)
            except OSError:
                pass

        threading.Thread(target=attempt, daemon=True).start()


if __name__ == "__main__":
    main()
