"""The registry side of the Harbor double: tokens, and what happens before and after the real registry is asked."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.message import Message
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

from tests.support.content import digest_of
from tests.support.harbor_accounts import SERVICE
from tests.support.harbor_exchange import Exchange
from tests.support.harbor_projects import HarborError, Project, Repository, Reservation
from tests.support.media_types import INDEXES, MANIFESTS, OCI_INDEX

_NAME = r"(?P<repository>[a-z0-9]+(?:(?:[./]|__?|-+)[a-z0-9]+)*)"
# Uploads come before blobs: their paths would pass for those of blobs.
_PATHS = {
    "manifest": re.compile(rf"/v2/{_NAME}/manifests/(?P<reference>[^/]+)"),
    "tags": re.compile(rf"/v2/{_NAME}/tags/list"),
    "referrers": re.compile(rf"/v2/{_NAME}/referrers/(?P<digest>[^/]+)"),
    "upload": re.compile(rf"/v2/{_NAME}/blobs/uploads(?:/(?P<session>[^/]*))?"),
    "blob": re.compile(rf"/v2/{_NAME}/blobs/(?P<digest>[^/]+)"),
}
_DIGEST = re.compile(r"[a-z0-9]+:[0-9a-f]{32,}")
_ACTIONS = {"GET": "pull", "HEAD": "pull", "DELETE": "delete"}
_SCOPES = {"pull": "pull", "push": "pull,push", "delete": "delete"}
_JSON = {"Content-Type": "application/json; charset=utf-8"}
_VULNERABLE = (
    "current image without vulnerability scanning cannot be pulled due to configured policy in 'Prevent images with "
    'vulnerability severity of "Critical" or higher from running.\' '
    "To continue with pull, please contact your project administrator for help."
)


def identify(exchange: Exchange, *, bearer: bool, oidc: bool) -> None:
    """Find out who a request is from, and refuse to change anything where nobody may."""
    authorization = exchange.headers.get("Authorization")
    exchange.identity = exchange.state.identify(authorization, bearer=bearer, oidc=oidc)
    if exchange.state.read_only and not exchange.safe:
        message = "The system is in read only mode. Any modification is prohibited."
        raise HarborError(HTTPStatus.FORBIDDEN, "DENIED", message)


def give_token(exchange: Exchange) -> None:
    """Answer a request for a token. What is asked for decides only about which projects it says something."""
    if exchange.command != "GET":
        exchange.reply(HTTPStatus.METHOD_NOT_ALLOWED)
        return
    state = exchange.state
    identify(exchange, bearer=False, oidc=True)
    scopes = [scope for value in exchange.queries("scope") for scope in value.split()]
    if not exchange.identity.authenticated and not scopes:
        exchange.reply(HTTPStatus.UNAUTHORIZED)
        return
    if exchange.query("service") != SERVICE:
        message = f"Unable to handle service: {exchange.query('service')}"
        raise HarborError(HTTPStatus.BAD_REQUEST, "BAD_REQUEST", message)
    access = []
    for scope in scopes:
        kind, _, rest = scope.partition(":")
        name = rest.rpartition(":")[0]
        project = state.projects.get(name.partition("/")[0])
        actions = exchange.identity.repository_actions(project) if project and "/" in name else []
        access.append({"type": kind, "name": name, "actions": actions})
    now = state.now()
    answer = {
        "token": state.tokens.issue(exchange.identity.name, access, now, state.token_lifetime),
        "access_token": "",
        "expires_in": int(state.token_lifetime),
        "issued_at": datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    exchange.reply(HTTPStatus.OK, json.dumps(answer).encode(), _JSON)


class Gate:
    """A request below `/v2/`."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._state = exchange.state
        self._kind, self._parts = "", dict[str, str | None]()
        for kind, pattern in _PATHS.items():
            if match := pattern.fullmatch(exchange.path_only):
                self._kind, self._parts = kind, match.groupdict()
                break
        self._repository = self._parts.get("repository") or ""

    def answer(self) -> None:
        """Check the request, and answer it or have it answered."""
        exchange = self._exchange
        source = exchange.query("from") if self._kind == "upload" else ""
        for name in (self._repository, source):
            if name and "/" not in name:
                raise HarborError(HTTPStatus.BAD_REQUEST, "BAD_REQUEST", f"invalid repository name: {name}")
        identify(exchange, bearer=True, oidc=True)
        if not self._kind:
            self._answer_beside_repositories()
            return
        self._authorise(self._repository, _ACTIONS.get(exchange.command, "push"))
        if exchange.command == "POST" and source:
            self._authorise(source, "pull")
        handlers = {
            ("GET", "manifest"): self._get_manifest,
            ("HEAD", "manifest"): self._get_manifest,
            ("PUT", "manifest"): self._put_manifest,
            ("DELETE", "manifest"): self._delete_manifest,
            ("GET", "tags"): self._list_tags,
            ("GET", "referrers"): self._list_referrers,
            ("POST", "upload"): self._open_upload,
            ("PATCH", "upload"): self._continue_upload,
            ("PUT", "upload"): self._close_upload,
            ("HEAD", "blob"): self._head_blob,
        }
        handlers.get((exchange.command, self._kind), exchange.forward)()

    @property
    def _project(self) -> Project:
        return self._state.projects[self._repository.partition("/")[0]]

    @property
    def _kept(self) -> Repository | None:
        return self._state.find_repository(self._repository)

    def _part(self, name: str) -> str:
        return self._parts[name] or ""

    def _answer_beside_repositories(self) -> None:
        path = self._exchange.path_only
        if path in {"/v2", "/v2/"} and not self._exchange.identity.authenticated:
            raise self._unauthorised("unauthorized", self._challenge())
        if path == "/v2/_catalog" and not self._exchange.identity.may_in_system("catalog", "read"):
            raise self._unauthorised("unauthorized to list catalog", 'Basic realm="harbor"')
        self._exchange.forward()

    def _challenge(self, scope: str = "") -> str:
        """Only clients that sent no credentials are told where to get a token."""
        if self._exchange.headers.get("Authorization"):
            return 'Basic realm="harbor"'
        realm = f"{self._state.external_scheme}://{self._exchange.host}/service/token"
        challenge = f'Bearer realm="{realm}",service="{SERVICE}"'
        return f'{challenge},scope="{scope}"' if scope else challenge

    def _unauthorised(self, message: str, challenge: str) -> HarborError:
        headers = {"Docker-Distribution-Api-Version": "registry/2.0", "Www-Authenticate": challenge}
        return HarborError(HTTPStatus.UNAUTHORIZED, "UNAUTHORIZED", message, headers)

    def _authorise(self, repository: str, action: str) -> None:
        exchange, name = self._exchange, repository.partition("/")[0]
        challenge = self._challenge(f"repository:{repository}:{_SCOPES[action]}")
        if exchange.safe and not exchange.headers.get("Authorization"):
            raise self._unauthorised(f"authorize header needed to send {exchange.command} to repository", challenge)
        project = self._state.projects.get(name)
        if project is None:
            message = f"project {name} not found"
            raise self._unauthorised(f"{message}: {message}", "")
        if not exchange.identity.may(project, "repository", action):
            message = f"unauthorized to access repository: {repository}, action: {action}"
            raise self._unauthorised(f"{message}: {message}", challenge)

    def _refuse_proxy(self) -> None:
        if self._project.registry_id:
            message = f"can not push artifact to a proxy project: {self._project.name}"
            raise HarborError(HTTPStatus.FORBIDDEN, "DENIED", message)

    def _missing_artifact(self, reference: str) -> HarborError:
        separator = "@" if _DIGEST.fullmatch(reference) else ":"
        message = f"artifact {self._repository}{separator}{reference} not found"
        return HarborError(HTTPStatus.NOT_FOUND, "NOT_FOUND", message)

    def _get_manifest(self) -> None:
        reference = self._part("reference")
        artifact = self._kept.find(reference) if self._kept else None
        if artifact is None:
            raise self._missing_artifact(reference)
        if self._project.metadata.get("prevent_vul") == "true":
            raise HarborError(HTTPStatus.PRECONDITION_FAILED, "PROJECTPOLICYVIOLATION", _VULNERABLE)
        self._exchange.forward(f"/v2/{self._repository}/manifests/{artifact.digest}")

    def _put_manifest(self) -> None:
        self._refuse_proxy()
        exchange, reference = self._exchange, self._part("reference")
        name = self._repository.partition("/")[2]
        if self._kept and reference in self._kept.tags and self._project.immutable(name, reference):
            message = f"Failed to process request due to '{name}:{reference}' configured as immutable."
            raise HarborError(HTTPStatus.PRECONDITION_FAILED, "PRECONDITION", message)
        data = exchange.body()
        media_type = exchange.headers.get("Content-Type") or ""
        document = _parse(media_type, data)
        digest, sizes = digest_of(data), _sizes(document)
        absent = {below: size for below, size in sizes.items() if below not in self._project.blobs}
        new = {} if digest in self._project.blobs else {digest: len(data), **absent}
        with Reservation(self._project, sum(new.values())) as reservation:
            status, headers, answer = exchange.ask(data)
            if status == HTTPStatus.CREATED:
                for child in document.get("manifests", []) if media_type in INDEXES else []:
                    if not self._kept or child["digest"] not in self._kept.artifacts:
                        raise self._missing_artifact(child["digest"])
                tag = None if _DIGEST.fullmatch(reference) else reference
                self._state.keep_artifact(self._repository, media_type, data, tag)
                reservation.book({digest: len(data), **sizes})
                self._state.blobs.update({digest: len(data)})
                if subject := document.get("subject"):
                    headers["OCI-Subject"] = subject["digest"]
            exchange.reply(status, answer, headers)

    def _delete_manifest(self) -> None:
        reference = self._part("reference")
        if not _DIGEST.fullmatch(reference):
            message = f"unsupported digest {reference}: invalid checksum digest format"
            raise HarborError(HTTPStatus.BAD_REQUEST, "UNSUPPORTED", message)
        with self._state.lock:
            if not self._kept or reference not in self._kept.artifacts:
                raise self._missing_artifact(reference)
            del self._kept.artifacts[reference]
            for tag in [tag for tag, digest in self._kept.tags.items() if digest == reference]:
                del self._kept.tags[tag]
        self._exchange.reply(HTTPStatus.ACCEPTED)

    def _list_tags(self) -> None:
        exchange = self._exchange
        if not self._kept:
            raise HarborError(HTTPStatus.NOT_FOUND, "NOT_FOUND", f"repository {self._repository} not found")
        tags = [tag for tag in sorted(self._state.tags(self._repository)) if tag > exchange.query("last")]
        page = tags[: int(exchange.query("n") or len(tags))]
        headers = dict(_JSON)
        if len(page) < len(tags):
            query = urlencode({"last": page[-1], "n": len(page)}) if page else "n=0"
            headers["Link"] = f'</v2/{self._repository}/tags/list?{query}>; rel="next"'
        body = json.dumps({"name": self._repository, "tags": page})
        exchange.reply(HTTPStatus.OK, body.encode(), headers)

    def _list_referrers(self) -> None:
        wanted, found = self._exchange.query("artifactType"), []
        for artifact in list(self._kept.artifacts.values()) if self._kept else []:
            document = artifact.document
            kind = document.get("artifactType") or document.get("config", {}).get("mediaType")
            subject = document.get("subject", {}).get("digest")
            if subject == self._part("digest") and wanted in {"", kind}:
                found.append(
                    {
                        "mediaType": artifact.media_type,
                        "digest": artifact.digest,
                        "size": len(artifact.data),
                        "artifactType": kind,
                        "annotations": document.get("annotations", {}),
                    }
                )
        headers = {"Content-Type": OCI_INDEX, **({"OCI-Filters-Applied": "artifactType"} if wanted else {})}
        body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found})
        self._exchange.reply(HTTPStatus.OK, body.encode(), headers)

    def _head_blob(self) -> None:
        digest = self._part("digest")
        if digest not in self._state.blobs:
            raise HarborError(HTTPStatus.NOT_FOUND, "NOT_FOUND", f"blob {digest} not found")
        self._exchange.forward()

    def _open_upload(self) -> None:
        self._refuse_proxy()
        digest = self._exchange.query("mount")
        if not digest:
            self._project.check_quota(0)
        size_bytes = self._state.blobs.get(digest, 0)
        with Reservation(self._project, 0 if digest in self._project.blobs else size_bytes) as reservation:

            def mounted(status: int, _headers: Message) -> None:
                if status == HTTPStatus.CREATED:
                    reservation.book({digest: size_bytes})

            self._exchange.forward(answered=mounted)

    def _continue_upload(self) -> None:
        def received(status: int, headers: Message) -> None:
            if status == HTTPStatus.ACCEPTED and (end := headers.get("Range", "").partition("-")[2]):
                self._state.uploads[self._part("session")] = int(end) + 1

        self._exchange.forward(answered=received)

    def _close_upload(self) -> None:
        exchange, digest = self._exchange, self._exchange.query("digest")
        # As Harbor does, also where the body is only the last chunk.
        size_bytes = exchange.content_length or self._state.uploads.get(self._part("session"), 0)
        with Reservation(self._project, 0 if digest in self._project.blobs else size_bytes) as reservation:

            def stored(status: int, _headers: Message) -> None:
                if status == HTTPStatus.CREATED:
                    reservation.book({digest: size_bytes})
                    self._state.blobs.setdefault(digest, size_bytes)

            exchange.forward(answered=stored)


def _parse(media_type: str, data: bytes) -> dict[str, Any]:
    if media_type not in INDEXES | MANIFESTS:
        raise _invalid(f"unsupported manifest media type and no default available: {media_type}")
    try:
        document = json.loads(data)
    except ValueError as error:
        raise _invalid(str(error)) from error
    if not isinstance(document, dict):
        raise _invalid("not an object")
    if document.get("mediaType", media_type) != media_type:
        raise _invalid(f"mediaType in manifest should be '{media_type}' not '{document['mediaType']}'")
    return document


def _invalid(why: str) -> HarborError:
    return HarborError(HTTPStatus.BAD_REQUEST, "MANIFEST_INVALID", f"unmarshal manifest failed: {why}")


def _sizes(document: Mapping[str, Any]) -> dict[str, int]:
    """Give the sizes of what a manifest refers to, without layers that are to be had elsewhere."""
    parts = [document.get("config"), *document.get("layers", []), *document.get("manifests", [])]
    foreign = ("foreign", "nondistributable")
    return {
        part["digest"]: part["size"]
        for part in parts
        if part and not any(word in part.get("mediaType", "") for word in foreign)
    }
