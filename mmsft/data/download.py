"""Downloads a file over http or https, from public addresses alone unless others are allowed."""

import http.client
import ipaddress
import shutil
import socket
import ssl
import urllib.request
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NoReturn, TypeAlias
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from mmsft.errors import DataError

Hosts: TypeAlias = Literal["public", "any"]
"""Which hosts may be asked: those with ``public`` addresses only, or ``any``, those of the own network too."""

_TIMEOUT: Final = 30.0
"""Seconds that a server may be silent."""
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""Answers of servers after which another try may help."""
_CHUNK: Final = 1 << 20


class Refused(DataError):
    """A URL leads to an address that may not be asked."""


class Passing(DataError):
    """A file couldn't be fetched, and another try may help."""


class Answer(NamedTuple):
    """What came: bytes, and what the server calls this version of the file, its ETag or date; empty if nothing."""

    size: int
    version: str


def is_url(path: str) -> bool:
    """Tells whether a path is a URL that can be fetched."""
    return path.startswith(("http://", "https://"))


def shown(url: str) -> str:
    """Returns a URL without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"


def download(url: str, hosts: Hosts, to: Path) -> Answer:
    """Writes a URL's bytes to a file.

    Raises:
        Refused: its host may not be asked.
        Passing: another try may help.
        DataError: none will.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "mmsft", "Accept-Encoding": "identity"})
    try:
        with _opener(hosts).open(request, timeout=_TIMEOUT) as answer, to.open("wb") as file:
            shutil.copyfileobj(answer, file, _CHUNK)
            stated = answer.headers.get("Content-Length")
            version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    except HTTPError as error:
        kind = Passing if error.code in _PASSING else DataError
        way = "" if kind is Passing else "; mend the URL, or fetch the file yourself and name it"
        raise kind(f"{shown(url)}: the server answers {error.code} {error.reason}{way}") from None
    except (URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise Passing(f"{shown(url)}: can't be fetched: {getattr(error, 'reason', error)!r}") from None
    size = to.stat().st_size
    if stated is not None and stated.isdecimal() and int(stated) != size:
        raise Passing(f"{shown(url)}: {size:,} bytes came of {int(stated):,}")
    return Answer(size, version)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone, each to a host that may be asked."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _refuse_host(newurl, self._hosts)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Plain(http.client.HTTPConnection):
    """Connects to an address that was looked at: a name can't mean another one a moment later."""

    def __init__(self, *args: Any, hosts: Hosts, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._hosts = hosts

    def connect(self) -> None:
        self.sock = _connected(self.host, self.port, self._hosts, self.timeout)


class _Secure(http.client.HTTPSConnection):
    """As `_Plain`, over TLS."""

    def __init__(self, *args: Any, hosts: Hosts, context: Any, **kwargs: Any) -> None:
        super().__init__(*args, context=context, **kwargs)
        self._hosts, self._tls = hosts, context

    def connect(self) -> None:
        plain = _connected(self.host, self.port, self._hosts, self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)


class _HttpHandler(urllib.request.HTTPHandler):
    def __init__(self, hosts: Hosts) -> None:
        super().__init__()
        self._hosts = hosts

    def http_open(self, req: urllib.request.Request) -> Any:
        if req.has_proxy():
            return super().http_open(req)
        return self.do_open(partial(_Plain, hosts=self._hosts), req)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def __init__(self, hosts: Hosts) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(context=self._tls)
        self._hosts = hosts

    def https_open(self, req: urllib.request.Request) -> Any:
        if req._tunnel_host:  # type: ignore[attr-defined] # a proxy's
            return super().https_open(req)
        return self.do_open(partial(_Secure, hosts=self._hosts, context=self._tls), req)


def _opener(hosts: Hosts) -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        _HttpHandler(hosts),
        _HttpsHandler(hosts),
        _Redirects(hosts),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _refuse_host(url: str, hosts: Hosts) -> None:
    """Looks at a URL's host before it is asked; where a proxy resolves names, as far as they resolve here."""
    parts = urlsplit(url)
    with suppress(OSError):
        _addresses(parts.hostname or "", parts.port or 80, hosts)


def _connected(host: str, port: int, hosts: Hosts, timeout: float | None) -> socket.socket:
    """Connects to one of a host's addresses, all of which were looked at."""
    failed: OSError | None = None
    for family, kind, protocol, _, address in _addresses(host, port, hosts):
        try:
            made = socket.socket(family, kind, protocol)
            made.settimeout(timeout)
            made.connect(address)
        except OSError as error:
            made.close()
            failed = error
        else:
            return made
    raise failed or OSError(f"{host} has no address")


def _addresses(host: str, port: int, hosts: Hosts) -> list[Any]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if hosts == "public":
        for *_, address in found:
            if not _public(str(address[0])):
                _refuse(host, str(address[0]))
    return found


def _public(address: str) -> bool:
    number = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address):
        inner = number.ipv4_mapped or number.sixtofour
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return number.is_global and not number.is_multicast


def _refuse(host: str, address: str) -> NoReturn:
    raise Refused(
        f"{host} is {address}, an address of a private network, which data may not lead to; if it is yours, give the "
        "source `urls: any`"
    )
