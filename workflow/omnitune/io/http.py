"""Reading over HTTP: no more than is asked for, from public addresses, through redirects that stay where they may.

Needs a package that is optional: imported where a URL of this kind is opened.
"""

import ipaddress
import socket
from collections.abc import Sequence
from functools import partial
from typing import Any

import aiohttp
from fsspec.implementations.http import HTTPFileSystem
from yarl import URL

from omnitune.errors import Refused
from omnitune.io.url_limits import is_below_url

ANYWHERE = ("0.0.0.0/0", "::/0")
CHUNK = 1 << 18
TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # addresses of IPv4 behind a translator


class PrivateAddress(Refused, OSError):  # noqa: N818  (a verdict, as Refused is)
    """An address that is not public. As an OSError it is one that cannot be connected to, and the next one is tried."""


class GuardedHTTP(HTTPFileSystem):
    """Files over HTTP from hosts that a stranger may have named.

    Args:
        networks: addresses and networks that may be read from although they are not public.
        roots: URLs below which all redirects must stay; none: they may lead anywhere.
    """

    def __init__(self, networks: Sequence[str] = ANYWHERE, roots: Sequence[str] = ()) -> None:
        super().__init__(get_client=partial(_open_session, networks=tuple(networks), roots=tuple(roots)))

    async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The bytes of a URL from start up to end, however many more the server sends."""
        start = start or 0
        most = None if end is None else end - start
        headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"} if start or end is not None else {}
        session = await self.set_session()
        content = bytearray()
        async with session.get(self.encode_url(url), headers=headers) as answer:
            if answer.status == 416 and not start:  # nothing is there
                return b""
            self._raise_not_found_for_status(answer, url)
            if start and answer.status != 206:
                raise ConnectionError("the server serves no ranges")
            async for chunk in answer.content.iter_chunked(CHUNK):
                content += chunk
                if most is not None and len(content) >= most:
                    break
        return bytes(content[:most])


async def _open_session(networks: tuple[str, ...], roots: tuple[str, ...], **_: Any) -> aiohttp.ClientSession:
    async def guard(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        """Each request, those after a redirect included."""
        if roots and not any(is_below_url(str(request.url), str(URL(root))) for root in roots):
            message = f"leads to {request.url}, which does not lie below {' or '.join(roots)}"
            raise Refused("outside_image_root", message)
        answer = await send(request)
        if answer.headers.get("Content-Encoding", "identity") != "identity":  # it might be of any size
            answer.close()
            raise ConnectionError("the server sends it compressed, which was not asked for")
        return answer

    return aiohttp.ClientSession(
        # The socket sees the address itself, whatever a name resolves to and however a URL spells it.
        connector=aiohttp.TCPConnector(socket_factory=partial(_socket, networks)),
        middlewares=(guard,),
        headers={"Accept-Encoding": "identity"},
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_read=300),  # whoever waits for an answer limits it further
    )


def _socket(networks: tuple[str, ...], found: tuple[Any, ...]) -> socket.socket:
    """A socket for an address; raises PrivateAddress for one that is neither public nor among the networks."""
    family, kind, protocol, _, (host, *_) = found
    address = ipaddress.ip_address(host)
    if not _is_public(address) and not any(address in ipaddress.ip_network(network) for network in networks):
        raise PrivateAddress(
            "private_address",
            f"leads to {address}, which is not public; allow it in data.urls.private_networks, or by --private_network",
        )
    return socket.socket(family, kind, protocol)


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in TRANSLATED:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner and not _is_public(inner):
            return False
    return address.is_global and not address.is_multicast
