"""A double of Harbor 2.x: its core, in front of a real registry of the version that Harbor ships.

    with HarborDouble() as harbor:
        harbor.add_project("mirror", quota_bytes=10_000_000)
        robot = harbor.add_robot("pusher", "Secret123", "mirror")
        ...  # push to harbor.host as robot.name
        assert harbor.tags("mirror/rancher/pause") == {"3.6": digest}

Who may do what, quotas, immutable tags, policies and lists are the double's; uploads, manifests and their
checks are the registry's. Both directions are streamed. A request that is refused while it uploads a blob is
answered without having been read, and its connection is closed. What it is by default can be changed at any
time: see the attributes of `HarborState`.
"""

import ssl
import threading
from collections.abc import Mapping
from http import HTTPStatus
from typing import Self

from tests.support.certificates import Certificate
from tests.support.faults import Fault, Meanwhile, Redirect, Reset, Stall, Status
from tests.support.harbor_api import Api
from tests.support.harbor_exchange import Backend, Exchange, HarborRequest
from tests.support.harbor_gate import Gate, give_token
from tests.support.harbor_projects import HarborError
from tests.support.harbor_state import HarborState
from tests.support.servers import LoopbackServer

_PROTECTED = ("/v2/", "/api/", "/service/")


class HarborDouble(HarborState, LoopbackServer):
    """Context manager around a double of Harbor on the loopback interface.

    Attributes:
        registry: The registry behind it, which anybody can talk to directly, without accounts.
    """

    def __init__(
        self,
        *,
        certificate: Certificate | None = None,
        admin: tuple[str, str] = ("admin", "Harbor12345"),
    ) -> None:
        """Prepare a double without projects.

        Args:
            certificate: Serve https with this certificate.
            admin: Name and password of the system's administrator.
        """
        HarborState.__init__(self, admin)
        self.registry = Backend()
        self._recorded: list[HarborRequest] = []
        self._faults: list[Fault] = []
        self._guard = threading.Lock()
        double = self

        class Handler(_Handler):
            harbor = double
            state = double
            backend = double.registry

        LoopbackServer.__init__(self, Handler)
        self.external_scheme = "https" if certificate else "http"
        self.url = f"{self.external_scheme}://{self.host}"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate.cert, certificate.key)
            # The handshake is left to the thread of the connection: a client that stalls must not stop the others.
            self._listener.socket = context.wrap_socket(
                self._listener.socket, server_side=True, do_handshake_on_connect=False
            )

    def start(self) -> Self:
        """Start the registry, then serve."""
        try:
            self.registry.start()
        except BaseException:
            self.registry.close()
            raise
        return super().start()

    def stop(self) -> None:
        """Stop serving, and remove the registry with all it holds."""
        super().stop()
        self.registry.close()

    def fault(
        self,
        method: str,
        path_regex: str,
        status: int | Status | Redirect | Reset | Stall | Meanwhile,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        times: int | None = 1,
        skip: int = 0,
    ) -> Fault:
        """Order a fault, which happens before anything is checked. Where several match, the first one happens.

        Args:
            method: Method of the requests it is for; `*` for any.
            path_regex: Searched for in the path with its query.
            status: Status to answer with instead, or what else is to happen.
            body: Body of that answer.
            headers: Headers of that answer.
            times: How often; None for always.
            skip: How many matching requests to leave alone before.

        Returns:
            The rule, whose `hits` tell how often it happened.
        """
        action = Status(status, headers or {}, body) if isinstance(status, int) else status
        rule = Fault(method, path_regex, action, times, skip)
        with self._guard:
            self._faults.append(rule)
        return rule

    def requests(self, method: str | None = None) -> list[HarborRequest]:
        """Give all requests so far, or those of one method."""
        with self._guard:
            return [request for request in self._recorded if method in {None, request.method}]

    def mark(self) -> int:
        """Give a point in the list of requests to look `since`."""
        return len(self.requests())

    def since(self, mark: int) -> list[HarborRequest]:
        """Give the requests after a `mark`."""
        return self.requests()[mark:]

    def _action_for(self, method: str, target: str) -> object:
        with self._guard:
            for rule in self._faults:
                if rule.strikes(method, target):
                    return rule.action
        return None

    def _keep(self, request: HarborRequest) -> None:
        with self._guard:
            self._recorded.append(request)


class _Handler(Exchange):
    harbor: HarborDouble

    def record(self, request: HarborRequest) -> None:
        self.harbor._keep(request)

    def answer(self) -> None:
        action = self.harbor._action_for(self.command, self.path)
        if isinstance(action, Status):
            self.reply(action.code, action.body, action.headers)
            return
        if isinstance(action, Redirect):
            self.reply(action.code, headers={"Location": action.location.replace("{target}", self.path)})
            return
        if isinstance(action, Stall):
            self.harbor.pause(action.seconds)
        if isinstance(action, Meanwhile):
            action.do()
        if isinstance(action, Reset):
            self.lost = True
            if not action.after_effect:
                self.drop()
        self._check_cookie()
        path = self.path_only
        if path == "/v2" or path.startswith("/v2/"):
            Gate(self).answer()
        elif path == "/service/token":
            give_token(self)
        elif path.startswith("/api/"):
            Api(self).answer()
        else:
            self.reply(HTTPStatus.NOT_FOUND, b"<html>404 Not Found</html>", {"Content-Type": "text/html"})

    def _check_cookie(self) -> None:
        """Refuse changes by whoever sends the session cookie back, as a browser does, but no token with it."""
        names = [entry.partition("=")[0].strip() for entry in self.headers.get("Cookie", "").split(";")]
        if "sid" in names and not self.safe and self.path.startswith(_PROTECTED):
            token = {"X-Harbor-Csrf-Token": "of-this-session"}
            raise HarborError(HTTPStatus.FORBIDDEN, "FORBIDDEN", "CSRF token not found in request", token)
