"""A stand-in for Android's adbd on loopback: the real adb program connects to it, and its commands run in a real shell here.

It speaks the wire protocol as AOSP's protocol.txt and SYNC.TXT have it: CNXN and AUTH, streams by OPEN, OKAY, WRTE and CLSE, and
the services shell (with and without its second protocol), exec and sync (STAT, SEND, RECV).
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

MISSING = "adb is not installed (Debian: apt install adb)"

_VERSION = 0x01000001  # the first whose payloads need no checksum
_MAX_DATA = 256 * 1024
_CHUNK = 64 * 1024
_TOKEN = 1
_STDIN, _STDOUT, _STDERR, _EXIT, _CLOSE_STDIN = range(5)


def installed() -> bool:
    return shutil.which("adb") is not None


class _Stream:
    """One open service, seen from the device. Its bytes come by `read`; `write` waits for the other end to be ready."""

    def __init__(self, number: int, remote: int, send: Callable[[bytes, int, int, bytes], None]) -> None:
        self.number, self.remote, self._send = number, remote, send
        self._ready = threading.Semaphore(1)
        self._arrived = threading.Condition()
        self._bytes = bytearray()
        self.closed = False
        self.on_close: Callable[[], None] = lambda: None

    def ready(self) -> None:
        self._ready.release()

    def put(self, data: bytes) -> None:
        with self._arrived:
            self._bytes += data
            self._arrived.notify()
        self._send(b"OKAY", self.number, self.remote, b"")

    def end(self) -> None:
        """The other end is gone."""
        with self._arrived:
            self.closed = True
            self._arrived.notify()
        self._ready.release()
        self.on_close()

    def read(self, count: int) -> bytes:
        """Exactly so many bytes. Raises EOFError where the stream ends before."""
        with self._arrived:
            self._arrived.wait_for(lambda: self.closed or len(self._bytes) >= count)
            if len(self._bytes) < count:
                raise EOFError
            data = bytes(self._bytes[:count])
            del self._bytes[:count]
            return data

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), _CHUNK):
            self._ready.acquire()
            if self.closed:
                raise EOFError
            self._send(b"WRTE", self.number, self.remote, data[start : start + _CHUNK])

    def close(self) -> None:
        # the last bytes are on their way until the other end is ready for more
        self._ready.acquire()
        self._send(b"CLSE", self.number, self.remote, b"")


class Adbd:
    """A device at `serial`.

    Args:
        features: that it announces; without `shell_v2` it is one of Android 6 or before.
        authorized: it knows the key of whoever connects.
        room: bytes that a file may have before its disk is full.
        shell: program that runs the commands, with its first arguments.
    """

    def __init__(
        self,
        *,
        features: Sequence[str] = ("shell_v2", "cmd"),
        authorized: bool = True,
        room: int | None = None,
        shell: Sequence[str] = ("sh",),
    ) -> None:
        self._features, self._authorized, self._room, self._shell = features, authorized, room, shell
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: set[socket.socket] = set()
        self.serial = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Pulls the cable."""
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.add(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        lock = threading.Lock()
        streams: dict[int, _Stream] = {}

        def send(command: bytes, first: int, second: int, data: bytes) -> None:
            (word,) = struct.unpack("<I", command)
            with lock, suppress(OSError):
                connection.sendall(struct.pack("<6I", word, first, second, len(data), 0, word ^ 0xFFFFFFFF) + data)

        try:
            while header := _receive(connection, 24):
                word, first, second, length, _, magic = struct.unpack("<6I", header)
                assert word == magic ^ 0xFFFFFFFF
                data = _receive(connection, length)
                match struct.pack("<I", word):
                    case b"CNXN" if self._authorized:
                        banner = f"device::ro.product.name=standin;ro.product.model=standin;features={','.join(self._features)}"
                        send(b"CNXN", _VERSION, _MAX_DATA, banner.encode())
                    case b"CNXN" | b"AUTH":  # an unknown key is asked to sign again, until its owner says yes on the screen
                        if first != 3:
                            send(b"AUTH", _TOKEN, 0, os.urandom(20))
                    case b"OPEN":
                        number = len(streams) + 1
                        streams[number] = stream = _Stream(number, first, send)
                        send(b"OKAY", number, first, b"")
                        service = data.rstrip(b"\0").decode()
                        threading.Thread(target=self._open, args=(service, stream), daemon=True).start()
                    case b"OKAY":
                        streams[second].ready()
                    case b"WRTE":
                        streams[second].put(data)
                    case b"CLSE":
                        streams[second].end()
        finally:
            for stream in streams.values():
                stream.end()
            self._connections.discard(connection)
            connection.close()

    def _open(self, service: str, stream: _Stream) -> None:
        kind, _, rest = service.partition(":")
        with suppress(EOFError):
            if kind == "sync":
                self._sync(stream)
            elif kind.startswith("shell,v2"):
                self._shell_v2(stream, rest)
            elif kind in ("shell", "exec"):
                self._raw(stream, rest)
            stream.close()

    def _start(self, command: str, errors: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._shell, "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )

    def _shell_v2(self, stream: _Stream, command: str) -> None:
        """Packets of one byte of kind, four of length, and the data."""
        program = self._start(command, subprocess.PIPE)
        stream.on_close = lambda: _hang_up(program)
        pack = struct.Struct("<BI")
        writing = threading.Lock()

        def forward() -> None:
            assert program.stdin is not None
            with suppress(EOFError, OSError):
                while True:
                    kind, length = pack.unpack(stream.read(pack.size))
                    data = stream.read(length)
                    if kind == _STDIN:
                        program.stdin.write(data)
                        program.stdin.flush()
                    elif kind == _CLOSE_STDIN:
                        program.stdin.close()

        def back(kind: int, file: int) -> None:
            with suppress(EOFError):
                while data := os.read(file, _CHUNK // 2):
                    with writing:
                        stream.write(pack.pack(kind, len(data)) + data)

        assert program.stdout is not None
        assert program.stderr is not None
        threading.Thread(target=forward, daemon=True).start()
        errors = threading.Thread(target=back, args=(_STDERR, program.stderr.fileno()), daemon=True)
        errors.start()
        back(_STDOUT, program.stdout.fileno())
        errors.join()
        code = program.wait()
        stream.write(pack.pack(_EXIT, 1) + bytes([code if code >= 0 else 128 - code]))

    def _raw(self, stream: _Stream, command: str) -> None:
        """Everything the command says, as it is; no exit status."""
        program = self._start(command, subprocess.STDOUT)
        stream.on_close = lambda: _hang_up(program)
        assert program.stdout is not None
        while data := os.read(program.stdout.fileno(), _CHUNK):
            stream.write(data)
        program.wait()

    def _sync(self, stream: _Stream) -> None:
        while True:
            request, length = struct.unpack("<4sI", stream.read(8))
            path = stream.read(length).decode() if length else ""
            match request:
                case b"STAT":
                    try:
                        found = Path(path).stat()
                        stream.write(struct.pack("<4s3I", b"STAT", found.st_mode, found.st_size, int(found.st_mtime)))
                    except OSError:
                        stream.write(struct.pack("<4s3I", b"STAT", 0, 0, 0))
                case b"RECV":
                    self._answer(stream, lambda path=path: _send_file(stream, Path(path)))
                case b"SEND":
                    self._answer(stream, lambda path=path: self._receive_file(stream, Path(path.rpartition(",")[0])))
                case _:  # QUIT
                    return

    def _answer(self, stream: _Stream, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            words = (error.strerror or "failed").encode()
            stream.write(struct.pack("<4sI", b"FAIL", len(words)) + words)

    def _receive_file(self, stream: _Stream, path: Path) -> None:
        failure: OSError | None = None
        size = 0
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            while True:
                kind, length = struct.unpack("<4sI", stream.read(8))
                if kind == b"DONE":
                    break
                data = stream.read(length)
                size += len(data)
                if self._room is not None and size > self._room:
                    failure = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                else:
                    file.write(data)
        if failure is not None:
            path.unlink()
            raise failure
        stream.write(struct.pack("<4sI", b"OKAY", 0))


def _send_file(stream: _Stream, path: Path) -> None:
    with path.open("rb") as file:
        while data := file.read(_CHUNK - 8):
            stream.write(struct.pack("<4sI", b"DATA", len(data)) + data)
    stream.write(struct.pack("<4sI", b"DONE", 0))


def _receive(connection: socket.socket, count: int) -> bytes:
    """Exactly so many bytes, or none where the connection ends."""
    data = b""
    with suppress(OSError):
        while len(data) < count and (part := connection.recv(count - len(data))):
            data += part
    return data if len(data) == count else b""


def _hang_up(program: subprocess.Popen[bytes]) -> None:
    """What adbd does to a command whose client has gone."""
    if program.poll() is None:
        program.send_signal(signal.SIGHUP)
    if program.stdin is not None:
        with suppress(OSError):
            program.stdin.close()
