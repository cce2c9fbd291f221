"""In front of PYTHONPATH this denies a process, and those that it starts, every network; what it tried is noted.

Sockets between the processes of one machine (AF_UNIX) are let through: the pool of a study talks over them.
"""

import os
import socket
import sys

NETWORK = (
    "socket.connect",
    "socket.sendto",
    "socket.sendmsg",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.gethostbyname",
)


def deny(event: str, arguments: tuple) -> None:
    if event == "socket.__new__":
        tried = arguments[1] != socket.AF_UNIX
    elif event in NETWORK:
        own = arguments[0]
        tried = not (isinstance(own, socket.socket) and own.family == socket.AF_UNIX)
    else:
        return
    if tried:
        with open(os.environ["BALORA_NETWORK_LOG"], "a") as log:
            log.write(f"{event} {arguments[1:]}\n")
        raise PermissionError(f"no network here: {event}")


sys.addaudithook(deny)
