"""A web server with the image lists of K3s releases, in the place of the real download site."""

from collections.abc import Mapping
from http import HTTPStatus
from urllib.parse import quote

from tests.support.certificates import Certificate
from tests.support.servers import LoopbackServer, QuietHandler

_PORTAL = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>Please sign in</body></html>\n"


class ReleaseServer(LoopbackServer):
    """Serves `/<base>/<version>/k3s-images.txt`, the `+` of a version encoded as `%2B`.

    Paths are compared as they were sent: a raw `+` is not found, so that a client which forgets to
    encode it does not get away with it.
    """

    def __init__(
        self,
        lists: Mapping[str, str],
        *,
        base: str = "k3s-io/k3s/releases/download",
        portal: bool = False,
        hang: bool = False,
        certificate: Certificate | None = None,
    ) -> None:
        """Prepare the server.

        Args:
            lists: The text of the list by version, such as `v1.32.2+k3s1`.
            base: First part of the path, without slashes around it.
            portal: Answer everything with a login page and 200, like the captive portal of a network.
            hang: Accept requests and never answer.
            certificate: Serve https with this certificate.
        """
        self._base = base
        self._bodies = {
            f"/{base}/{quote(version, safe='')}/k3s-images.txt": text.encode() for version, text in lists.items()
        }
        self.paths: list[str] = []
        server = self

        class Handler(QuietHandler):
            def do_GET(self) -> None:  # noqa: N802 - the name http.server wants
                server.paths.append(self.path)
                if hang:
                    server.pause()
                    self.close_connection = True
                elif portal:
                    self.reply(HTTPStatus.OK, _PORTAL, {"Content-Type": "text/html; charset=utf-8"})
                elif self.path in server._bodies:
                    body = server._bodies[self.path]
                    self.reply(HTTPStatus.OK, body, {"Content-Type": "text/plain; charset=utf-8"})
                else:
                    self.reply(HTTPStatus.NOT_FOUND, b"Not Found", {"Content-Type": "text/plain"})

            do_HEAD = do_GET  # noqa: N815

        super().__init__(Handler, certificate=certificate)

    @property
    def url(self) -> str:
        """Address under which the versions are."""
        return f"{self.origin}/{self._base}"
