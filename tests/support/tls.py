"""Certificates of every kind, and a TLS server that sends an alert when a handshake fails, unlike asyncio's."""

import asyncio
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from support.sockets import completion, reply


class Authority:
    """A certificate authority.

    Args:
        folder: Directory for its files.
        name: Its common name.
    """

    def __init__(self, folder: Path, name: str = "authority") -> None:
        folder.mkdir()
        self._folder = folder
        self.certificate: Path = folder / "ca.pem"
        self.key: Path = folder / "ca.key"
        (folder / "index").write_text("")
        (folder / "serial").write_text("01")
        command = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-keyout", "ca.key", "-out", "ca.pem", "-subj", f"/CN={name}", "-days", "9"]
        command += ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]  # required by Python 3.13
        self._openssl(*command)

    def _openssl(self, *command: str) -> None:
        subprocess.run(["openssl", *command], check=True, capture_output=True, cwd=self._folder)

    def issue(self, name: str = "localhost", *, purpose: str = "", begin: str = "", end: str = "") -> tuple[Path, Path]:
        """Returns a certificate for a name, and its key. ``begin`` and ``end`` are dates as ``20200101000000Z``."""
        number = len(list(self._folder.glob("key*")))
        key, certificate, config = (self._folder / f"{kind}{number}.pem" for kind in ("key", "cert", "config"))
        extensions = f"subjectAltName=DNS:{name}\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n"
        extensions += f"extendedKeyUsage={purpose}\n" if purpose else ""
        config.write_text(
            "[ca]\ndefault_ca=d\n[d]\ndatabase=index\nserial=serial\nnew_certs_dir=.\ndefault_md=sha256\npolicy=p\n"
            f"unique_subject=no\nx509_extensions=v3\n[p]\ncommonName=supplied\n[v3]\n{extensions}"
        )
        request = ["req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        self._openssl(*request, "-keyout", str(key), "-out", "request.csr", "-subj", f"/CN={name}")
        dates = [*(["-startdate", begin] if begin else []), *(["-enddate", end] if end else ["-days", "8"])]
        sign = ["ca", "-batch", "-config", str(config), "-keyfile", "ca.key", "-cert", "ca.pem", "-notext", *dates]
        self._openssl(*sign, "-in", "request.csr", "-out", str(certificate))
        return certificate, key

    def server(self, certificate: Path, key: Path, clients: bool = False) -> ssl.SSLContext:
        """Returns the TLS context of a server; ``clients`` requires client certificates of this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        if clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.certificate)
        return context

    def client(self, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
        """Returns the TLS context of a client that trusts this authority, optionally with a certificate."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        if certificate:
            context.load_cert_chain(certificate, key)
        return context


class TalkativeTLSServer:
    """Answers plain calls over TLS in a thread, and sends an alert when it aborts a handshake.

    Args:
        context: The server's TLS context.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._run)
        self.connections = 0

    @property
    def url(self) -> str:
        return f"https://localhost:{self._listener.getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # ends its accept()
        await asyncio.to_thread(self._thread.join)
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            connection.settimeout(30)
            try:
                self._talk(connection)
            except OSError:
                pass
            finally:
                connection.close()

    def _talk(self, connection: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._context.wrap_bio(incoming, outgoing, server_side=True)
        ready = answered = False
        while not answered and (data := connection.recv(65536)):
            incoming.write(data)
            try:
                if not ready:
                    tls.do_handshake()
                    ready = True
                tls.read(65536)
                tls.write(reply(completion("by tls"), headers="Connection: close\r\n"))
                answered = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                connection.sendall(outgoing.read())
                connection.shutdown(
                    socket.SHUT_WR
                )  # otherwise unread data would reset the connection before the alert arrives
                continue
            connection.sendall(outgoing.read())
