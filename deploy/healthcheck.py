"""Exit with 0 if `GET http://127.0.0.1:PORT/PATH` answers 200: `python3 -IS healthcheck.py [PORT PATH]`.

Without arguments it checks `/readyz` of the service in this container (`BELLHOP_SERVICE`).

It uses a socket, because it runs every few seconds in each container: starting Python takes 15 ms, with urllib 100 ms.
"""

import os
import socket
import sys

PORTS = {"gateway": 8000, "notifier": 8001, "leaderboard": 8002, "mailer": 8003}

port, path = sys.argv[1:] or (PORTS[os.environ["BELLHOP_SERVICE"]], "/readyz")
with socket.create_connection(("127.0.0.1", int(port)), timeout=4) as connection:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = b""
    while chunk := connection.recv(65536):
        answer += chunk
print(answer.rpartition(b"\r\n\r\n")[2].decode(errors="replace")[:1000])  # `docker inspect` shows it
sys.exit(answer[9:12] != b"200")
