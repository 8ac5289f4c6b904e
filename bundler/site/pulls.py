"""Would a node get this image? Every manifest and blob is asked for where, and as, a node would ask.

Rules, as containerd has them:

- A tag means what the first endpoint that answers says it means.
- Each manifest and blob comes from the first endpoint that has it, so an endpoint that lacks one is passed over.

Source: containerd docs/hosts.md; ``core/remotes/docker/resolver.go`` and ``fetcher.go``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from bundler.errors import (
    AirgapSyncError,
    AuthError,
    BadTlsFileError,
    ConnectionFailedError,
    HiddenByPolicyError,
    NotTlsError,
    TimedOutError,
    TlsError,
    TlsWantedError,
)
from bundler.k3s.access import credential_of, tls_of
from bundler.k3s.endpoint import Endpoint
from bundler.net import Http
from bundler.oci.content import ImageContent
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.oci.manifest import Index
from bundler.oci.platform import Platform
from bundler.oci.reference import Reference
from bundler.registry.client import RegistryClient
from bundler.registry.endpoint import Endpoint as ClientEndpoint
from bundler.registry.host import Hosts
from bundler.registry.repository import Repository
from bundler.site.findings import ImageResult, Problem
from bundler.site.platforms import PlatformContent, content_for
from bundler.site.routes import Route, Site

_TO_SEEDS = (
    "Put the archive of this bundle into agent/images of the seeds, by the command in RUNBOOK.md, which `airgap-sync "
    "config` writes, and wait until K3s has imported it."
)


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """One name of the bundle, as it is checked.

    Attributes:
        platforms: Those that the lock knows of an image that is one manifest.
    """

    reference: Reference
    content: ImageContent
    route: Route
    platforms: tuple[Platform, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What the messages name: the commands and files of this site.

    Attributes:
        registries: The registries.yaml that was checked.
        push: The command that puts images into the registry.
        config: The command that makes node files.
        certs_d: What K3s made of it on this node; None if that is not what was checked.
    """

    registries: str
    push: str
    config: str
    certs_d: str | None = None


class PullCheck:
    """Checks images as nodes pull them; safe to share between threads.

    Args:
        site: Where images were put.
        endpoints: Gives the endpoints of a registry, in the order of nodes, one list for each kind of node.
        http: What requests are sent with.
        hosts: The hosts of this run.
        advice: For the messages.
        on_node: The peers can be asked too.
        here: Gives for a path on nodes, such as that of a CA, where that file lies for us.
        ca_files: Trusted at all endpoints besides what registries.yaml names.
    """

    def __init__(
        self,
        site: Site,
        endpoints: Callable[[str], Sequence[Sequence[Endpoint]]],
        http: Http,
        hosts: Hosts,
        advice: Advice,
        *,
        on_node: bool,
        here: Callable[[str], str],
        ca_files: tuple[str, ...] = (),
    ) -> None:
        self._site = site
        self._endpoints = endpoints
        self._http = http
        self._hosts = hosts
        self._advice = advice
        self._on_node = on_node
        self._here = here
        self._ca_files = ca_files
        self._clients: dict[Endpoint, RegistryClient] = {}
        self._answers: dict[tuple[Endpoint, str, str], bool | AirgapSyncError] = {}
        self._names: dict[tuple[Endpoint, str, str], tuple[tuple[Digest, str] | None]] = {}
        self._lost: dict[Endpoint, AirgapSyncError] = {}
        #: Endpoints that failed before another one answered, and what they said.
        self.failing: dict[str, str] = {}
        self._lock = threading.Lock()

    def check(self, image: CheckedImage, platform: Platform) -> ImageResult:
        """Tell whether nodes of a platform get an image."""
        content = content_for(image.content, platform, image.platforms)
        if content is None:
            problem = Problem(
                "platform-missing",
                f"the bundle has {image.reference} for other platforms only",
                f"Make the bundle with --platform {platform} as well, and push it again.",
            )
            return ImageResult(str(image.reference), str(platform), ok=False, problem=problem)
        unknown: Problem | None = None
        for endpoints in self._endpoints(image.reference.registry):
            ok, why = self._from(image, content, list(endpoints))
            if ok is False:
                return ImageResult(str(image.reference), str(platform), ok=False, problem=why)
            unknown = unknown or why
        return ImageResult(str(image.reference), str(platform), ok=None if unknown else True, problem=unknown)

    def _from(
        self, image: CheckedImage, content: PlatformContent, endpoints: list[Endpoint]
    ) -> tuple[bool | None, Problem | None]:
        asked = [endpoint for endpoint in endpoints if self._on_node or not endpoint.is_embedded]
        shared = any(endpoint.is_embedded for endpoint in endpoints)
        # The target may be a source registry itself: then its own endpoint is the right one.
        only_default = bool(endpoints) and all(
            endpoint.is_default and not self._is_target(endpoint) for endpoint in endpoints
        )
        if image.route is Route.EMBEDDED and not shared and only_default:
            return False, self._missing_mirror(image)
        attempts = [_Attempt(endpoint) for endpoint in asked]
        found = next((attempt for attempt in attempts if self._resolve(image, attempt)), None)
        if found is not None:
            self._note_failing(attempts)
        if found is None:
            if shared and not self._on_node and image.route is Route.EMBEDDED:
                return None, Problem(
                    "on-nodes-only",
                    "it comes from other nodes, which only a node can ask",
                    "Run preflight on every node with --out FILE, and then once with --collect.",
                )
            return False, self._unresolved(image, attempts, only_default=only_default)
        if found.digest is not None:
            fix = f"Find out who moved it, then put it back: {self._advice.push} --verify all"
            if found.endpoint.is_embedded:
                fix = f"Find the node that has it so, and remove it there: k3s crictl rmi {image.reference}"
            words = f"{found.place} stands for {found.digest}, the bundle has {image.content.root.digest}"
            return False, Problem("tag-moved", words, fix)
        if found.endpoint.is_default and not self._on_node and not self._is_target(found.endpoint):
            return None, Problem(
                "source-only",
                f"only {found.place} has it, which answers here; whether nodes reach it is not known",
                f"Put it where nodes look: {self._advice.push}",
            )
        return self._whole(image, content, [attempt for attempt in attempts if attempt.usable])

    def _note_failing(self, attempts: list[_Attempt]) -> None:
        with self._lock:
            for attempt in attempts:
                if attempt.error is not None and not attempt.endpoint.is_default:
                    self.failing.setdefault(attempt.endpoint.base_url, attempt.error.message)

    # --- the name -----------------------------------------------------------------------------------------------

    def _resolve(self, image: CheckedImage, attempt: _Attempt) -> bool:
        """Ask one endpoint what the name stands for; tell whether it answered that."""
        root = image.content.root
        if lost := self._lost.get(attempt.endpoint):
            attempt.error = lost
            return False
        try:
            repository = self._repository(attempt.endpoint, image.reference.repository)
            mark = "@" if image.reference.digest else ":"
            attempt.place = f"{repository.place}{mark}{image.reference.api_reference}"
            answer = self._meant(attempt.endpoint, repository, image.reference.api_reference)
        except AirgapSyncError as error:
            attempt.error = error
            if isinstance(error, ConnectionFailedError | TimedOutError | TlsError):
                # It was tried often enough, and the next image would wait as long.
                self._lost[attempt.endpoint] = error
            return False
        if answer is None:
            return False
        digest = answer[0]
        if digest != root.digest and not digest.matches(root.raw):
            attempt.digest = digest
        return True

    def _meant(self, endpoint: Endpoint, repository: Repository, reference: str) -> tuple[Digest, str] | None:
        """Ask what a name stands for once in a run: it is the same for all platforms."""
        place = (endpoint, repository.name, reference)
        with self._lock:
            known = self._names.get(place)
        if known is None:
            known = (repository.head_manifest(reference),)
            with self._lock:
                self._names[place] = known
        return known[0]

    def _unresolved(self, image: CheckedImage, attempts: list[_Attempt], *, only_default: bool) -> Problem:
        if only_default:
            return self._missing_mirror(image)
        told = [
            attempt for attempt in attempts if not attempt.endpoint.is_default or self._is_target(attempt.endpoint)
        ] or attempts
        words = "; ".join(dict.fromkeys(attempt.words() for attempt in told)) or "no endpoint is left to ask"
        for attempt in told:
            if attempt.error is None:
                return self._absent(image, attempt, words)
        error = next((attempt.error for attempt in told if attempt.error), None)
        rule, fix = self._blame(error, next((attempt.endpoint for attempt in told), None))
        return Problem(rule, words, fix)

    def _absent(self, image: CheckedImage, attempt: _Attempt, words: str) -> Problem:
        """Say why an endpoint does not have a name: it was asked for another, or it is not there."""
        target, endpoint = self._site.target, attempt.endpoint
        if target and self._is_target(endpoint):
            right = target.repository_for(image.reference, keep_registry=self._site.keep_registry)
            plain = replace(endpoint, base_url=f"{target.url}/v2", rewrites=())
            if right != _asked(endpoint, image.reference.repository) and self._there(plain, right, image):
                return Problem(
                    "wrong-rewrite",
                    f"nodes ask for {attempt.place}, and the image is at {target.host}/{right}",
                    f"Mend the mirror of {image.reference.registry} in {self._advice.registries}, copy it to all nodes "
                    f"and restart K3s there: {self._advice.config}",
                )
        return Problem("image-absent", words, self._put(image, f"Put it there: {self._advice.push}"))

    def _put(self, image: CheckedImage, push: str) -> str:
        return _TO_SEEDS if image.route is Route.EMBEDDED else push

    def _is_target(self, endpoint: Endpoint) -> bool:
        target = self._site.target
        return target is not None and endpoint.host.removesuffix(":443") == target.host.removesuffix(":443")

    def _there(self, endpoint: Endpoint, repository: str, image: CheckedImage) -> bool:
        try:
            return self._repository(endpoint, repository).head_manifest(image.reference.api_reference) is not None
        except AirgapSyncError:
            return False

    def _missing_mirror(self, image: CheckedImage) -> Problem:
        registry = image.reference.registry
        if self._advice.certs_d:
            return Problem(
                "missing-mirror",
                f"{self._advice.certs_d} has no mirror for {registry}, so this node asks {registry} itself",
                f"See that {self._advice.registries} has one, as `config` writes it, and restart K3s here: "
                f"{self._advice.config}",
            )
        return Problem(
            "missing-mirror",
            f"{self._advice.registries} gives nodes no mirror for {registry}, so they ask {registry} itself",
            f"Make the file anew, copy it to every node and restart K3s there: {self._advice.config}",
        )

    def _blame(self, error: AirgapSyncError | None, endpoint: Endpoint | None) -> tuple[str, str]:
        host = endpoint.host if endpoint else "HOST"
        where = f"configs.{host} of {self._advice.registries}"
        if isinstance(error, HiddenByPolicyError):
            return "hidden-by-policy", error.hint
        if isinstance(error, AuthError):
            return "no-pull-right", (
                f"Put a name and password that may pull under {where}, on every node, and restart K3s there "
                "(`airgap-sync harbor robot --pull-only` makes such an account)."
            )
        if isinstance(error, NotTlsError | TlsWantedError):
            return (
                error.reference,
                f"Mend the scheme of the endpoint in {self._advice.registries}: http:// or https://.",
            )
        if isinstance(error, TlsError | BadTlsFileError):
            return error.reference, (
                f"Set tls.ca_file under {where} to the CA that signed the certificate of {host}, on every node, and "
                "restart K3s there."
            )
        if isinstance(error, ConnectionFailedError):
            return "endpoint-unreachable", error.hint or f"Make {host} reachable from the nodes."
        return (error.reference, error.hint) if error else ("no-endpoint", self._advice.config)

    # --- what the name stands for -------------------------------------------------------------------------------

    def _whole(
        self, image: CheckedImage, content: PlatformContent, attempts: list[_Attempt]
    ) -> tuple[bool | None, Problem | None]:
        fix = self._put(image, f"Put it back: {self._advice.push} --verify all")
        names = image.reference.repository
        for manifest in content.manifests[1:]:
            digest = manifest.digest
            if problem := self._somewhere(attempts, names, str(digest), partial(_has_manifest, digest=digest)):
                what = "index" if isinstance(manifest, Index) else "manifest"
                return False, Problem("child-missing", f"{what} {digest} of this platform: {problem}", fix)
        for blob in content.blobs:
            if problem := self._somewhere(attempts, names, str(blob.digest), partial(_has_blob, blob=blob)):
                return False, Problem("blob-missing", f"blob {blob.digest} ({blob.size} bytes): {problem}", fix)
        return True, None

    def _somewhere(
        self, attempts: list[_Attempt], name: str, key: str, ask: Callable[[Repository], bool]
    ) -> str | None:
        """Return None if an endpoint has something, else what each of them said."""
        said = []
        for attempt in attempts:
            answer = self._answer(attempt.endpoint, name, key, ask)
            if answer is True:
                return None
            place = f"{attempt.endpoint.base_url}/{_asked(attempt.endpoint, name)}"
            said.append(answer.message if isinstance(answer, AirgapSyncError) else f"{place} lacks it")
        return "; ".join(dict.fromkeys(said))

    def _answer(
        self, endpoint: Endpoint, name: str, key: str, ask: Callable[[Repository], bool]
    ) -> bool | AirgapSyncError:
        """Ask an endpoint something once in a run: images share layers."""
        place = (endpoint, _asked(endpoint, name), key)
        with self._lock:
            known = self._answers.get(place)
        if known is not None:
            return known
        try:
            answer: bool | AirgapSyncError = ask(self._repository(endpoint, name))
        except AirgapSyncError as error:
            answer = error
        with self._lock:
            self._answers[place] = answer
        return answer

    # --- who is asked -------------------------------------------------------------------------------------------

    def _repository(self, endpoint: Endpoint, name: str) -> Repository:
        return Repository(self._client(endpoint), endpoint.repository(name))

    def _client(self, endpoint: Endpoint) -> RegistryClient:
        with self._lock:
            client = self._clients.get(endpoint)
            if client is None:
                auth = endpoint.auth
                source = f"configs.{endpoint.host}.auth of {self._advice.registries}"
                tls = tls_of(endpoint.tls)
                made = ClientEndpoint(
                    api_url=endpoint.base_url,
                    tls=replace(
                        tls,
                        ca_files=(*(self._here(path) for path in tls.ca_files), *self._ca_files),
                        cert_file=self._here(tls.cert_file) if tls.cert_file else None,
                        key_file=self._here(tls.key_file) if tls.key_file else None,
                    ),
                    credential=credential_of(auth, source) if auth else None,
                    namespace=endpoint.ns,
                    credentials_hint=f"Nodes know only what is under {source}.",
                )
                client = self._clients[endpoint] = RegistryClient(made, self._http, self._hosts)
        return client


class _Attempt:
    """What one endpoint said about a name."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.place = endpoint.base_url
        self.error: AirgapSyncError | None = None
        #: Of other content than the bundle's.
        self.digest: Digest | None = None

    @property
    def usable(self) -> bool:
        """Whether it can be asked for more."""
        return self.error is None

    def words(self) -> str:
        return self.error.message if self.error else f"{self.place} is not there"


def _asked(endpoint: Endpoint, name: str) -> str:
    try:
        return endpoint.repository(name)
    except AirgapSyncError:
        return name


def _has_manifest(repository: Repository, *, digest: Digest) -> bool:
    return repository.head_manifest(str(digest)) is not None


def _has_blob(repository: Repository, *, blob: Descriptor) -> bool:
    return repository.has_blob(blob)
