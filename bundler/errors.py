"""Every error a user can meet: its stable reference, its hint and its exit code.

Invariants:

- One class per family (a row of the exit-code table), one subclass per condition. The family owns the exit
  code, the condition owns the ``reference``, a kebab-case word that scripts may rely on.
- ``message`` is one line for the user, ``hint`` says what to do next. Neither ever holds a secret.
- This module imports nothing of ours, so every layer can raise.

The exit-code table in README.md is generated from these classes by :func:`exit_code_table`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, ClassVar

#: Control characters, line separators, and what turns the direction of writing.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]+")
MAX_MESSAGE_LENGTH = 1000


def one_line(text: str) -> str:
    """Return a text that any terminal, log and JSON document can take: short, no control characters, valid Unicode."""
    text = _CONTROL.sub(" ", text).encode(errors="replace").decode()
    return text if len(text) <= MAX_MESSAGE_LENGTH else f"{text[: MAX_MESSAGE_LENGTH - 3]}..."


class AirgapSyncError(Exception):
    """Root of all our errors; never raised itself.

    Args:
        message: What happened, in one line.
        hint: What the user should do; overrides the class's own hint.
        context: Facts for the report (strings, integers), never secrets.
    """

    exit_code: int = 1
    family: ClassVar[str] = ""
    reference: str = "unexpected"
    hint: str = ""
    #: Whether the same may succeed a little later.
    retryable: bool = False

    def __init__(self, message: str, *, hint: str | None = None, context: dict[str, Any] | None = None) -> None:
        self.message = one_line(message)
        super().__init__(self.message)
        if hint is not None:
            self.hint = hint
        self.context: dict[str, Any] = context or {}

    def to_dict(self) -> dict[str, Any]:
        """Return the error as it stands in reports and JSON output."""
        body: dict[str, Any] = {
            "reference": self.reference,
            "message": self.message,
            "exit_code": self.exit_code,
        }
        if self.hint:
            body["hint"] = self.hint
        if self.context:
            body["context"] = self.context
        return body


# --- 3: what was asked for cannot be understood, or must not be done ---------------------------------------


class DefinitionError(AirgapSyncError):
    """The request itself is wrong, or names a place that cannot be written."""

    exit_code = 3
    family = "DefinitionError"
    reference = "bad-definition"


class BadReferenceError(DefinitionError):
    """A text is not an image reference."""

    reference = "bad-reference"


class BadDigestError(DefinitionError):
    """A text is not a digest."""

    reference = "bad-digest"


class BadPlatformError(DefinitionError):
    """A text is not a platform."""

    reference = "bad-platform"
    hint = "Write OS/ARCH or OS/ARCH/VARIANT, for example linux/amd64 or linux/arm/v7; `all` takes everything."


class BadK3sVersionError(DefinitionError):
    """A text is not a K3s version."""

    reference = "bad-k3s-version"


class UnknownK3sVersionError(DefinitionError):
    """A well-formed K3s version that neither the shipped data nor the release location knows."""

    reference = "unknown-k3s-version"


class UnknownSucVersionError(DefinitionError):
    """A system-upgrade-controller version that the shipped data does not know."""

    reference = "unknown-suc-version"


class BadComponentError(DefinitionError):
    """A name given to --disable is not a component of K3s that can be left out."""

    reference = "bad-component"


class BadImageListError(DefinitionError):
    """A file of references cannot be read."""

    reference = "bad-image-list"
    hint = "Name a text file with one reference a line, or - for standard input."


class BadReleaseUrlError(DefinitionError):
    """A release location is neither a URL nor a directory."""

    reference = "bad-release-url"
    hint = "Give --release-url URL|DIR, or `--release-url shipped` for the lists shipped with airgap-sync."


class BadRegistriesFileError(DefinitionError):
    """A registries.yaml cannot be used."""

    reference = "bad-registries-file"


class BadTargetError(DefinitionError):
    """A push target is not ``[http://|https://]host[:port][/prefix]``."""

    reference = "bad-target"
    hint = "Write TARGET as [http://|https://]host[:port][/prefix], for example https://harbor.example/k3s."


class NotABundleError(DefinitionError):
    """The directory to write to holds something that is not a bundle of ours."""

    reference = "not-a-bundle"
    hint = "Name a directory that is absent, empty, or a bundle made by airgap-sync."


class RequestChangedError(DefinitionError):
    """The directory holds a bundle of another request."""

    reference = "request-changed"
    hint = "Use another --to directory, or --replace to turn this one into the new bundle."


class NameCollisionError(DefinitionError):
    """Two images would land on one name at the target."""

    reference = "name-collision"
    hint = "Use --keep-registry: it puts the source registry into the name at the target."


class NothingSelectedError(DefinitionError):
    """No image was asked for."""

    reference = "nothing-selected"
    hint = "Name images with --k3s VERSION, --image REF or --images FILE."


class BadOutputError(DefinitionError):
    """A file that the user named for output cannot be written."""

    reference = "bad-output"


class BadTlsFileError(DefinitionError):
    """A CA, certificate or key file cannot be used."""

    reference = "bad-tls-file"
    hint = "Name PEM files that this user can read; a key must not be encrypted."


class BadProxyError(DefinitionError):
    """A proxy of the environment is not one that can be used."""

    reference = "bad-proxy"
    hint = (
        "Write HTTPS_PROXY and HTTP_PROXY as http://[user:password@]host:port, with # / ? @ : % in user or password as "
        "%23 %2F %3F %40 %3A %25; or unset them. SOCKS is not spoken."
    )


class ProjectNeededError(DefinitionError):
    """A name at Harbor would have no project in it."""

    reference = "project-needed"
    hint = "Add a project to TARGET, for example https://HOST/k3s: every image then goes below that project."


class BadProjectError(DefinitionError):
    """A name is none that a Harbor project can have."""

    reference = "bad-project"
    hint = "A Harbor project is lower case letters and digits, with single . _ or - between them."


class BadRobotError(DefinitionError):
    """A robot account cannot be made under this name."""

    reference = "bad-robot"
    hint = "A robot's name is lower case letters and digits, with single . _ or - between them."


class BadSiteError(DefinitionError):
    """A site.json cannot be used."""

    reference = "bad-site"
    hint = "Name the site.json that `airgap-sync config` wrote, unchanged."


class BadHostsFileError(DefinitionError):
    """A hosts.toml of containerd cannot be read."""

    reference = "bad-hosts-toml"


class BadSucManifestError(DefinitionError):
    """The manifest of system-upgrade-controller lacks what has to be set in it."""

    reference = "bad-suc-manifest"
    hint = "Give system-upgrade-controller.yaml as its release has it."


class BadKubeconfigError(DefinitionError):
    """A kubeconfig cannot be used."""

    reference = "bad-kubeconfig"
    hint = "K3s writes one at /etc/rancher/k3s/k3s.yaml on every server; check the address under clusters.server."


class BadResultError(DefinitionError):
    """A file is not the result of a preflight of this bundle."""

    reference = "bad-preflight-result"
    hint = "Name files that `airgap-sync preflight BUNDLE --out FILE` wrote for the same bundle and site."


# --- 4: something that was named is not there --------------------------------------------------------------


class NotFoundError(AirgapSyncError):
    """Something that was named does not exist."""

    exit_code = 4
    family = "NotFoundError"
    reference = "not-found"


class ManifestUnknownError(NotFoundError):
    """A registry does not have this manifest."""

    reference = "manifest-unknown"
    hint = "Check the name and tag; a registry may also answer so when credentials are missing."


class BlobUnknownError(NotFoundError):
    """A registry does not have this blob."""

    reference = "blob-unknown"


class LayoutMissingError(NotFoundError):
    """There is no OCI image layout at the given path."""

    reference = "layout-missing"
    hint = "Give the directory that `airgap-sync bundle --to` wrote: it holds oci-layout and index.json."


class ProjectMissingError(NotFoundError):
    """A Harbor project that is needed does not exist."""

    reference = "project-missing"


class RepositoryUnknownError(NotFoundError):
    """A registry that wants its repositories made beforehand does not have this one."""

    reference = "repository-unknown"
    hint = (
        "This registry does not make repositories by itself (ECR, for example): create it there first, or check the "
        "prefix in TARGET."
    )


# --- 5: content is not what it claims to be ----------------------------------------------------------------


class IntegrityError(AirgapSyncError):
    """Content does not match its digest, its size or its form."""

    exit_code = 5
    family = "IntegrityError"
    reference = "integrity"


class DigestMismatchError(IntegrityError):
    """Bytes do not hash to the digest they were named by."""

    reference = "digest-mismatch"


class SizeMismatchError(IntegrityError):
    """Content is longer or shorter than its descriptor says."""

    reference = "size-mismatch"


class TruncatedBlobError(IntegrityError):
    """A transfer ended before all bytes were there."""

    reference = "truncated-blob"
    retryable = True


class BlobMissingError(IntegrityError):
    """A bundle lacks a blob that one of its manifests lists."""

    reference = "blob-missing"
    hint = "Copy the bundle again from where it was made, or rebuild it there: `bundle` fetches what is missing."


class IndexChildMissingError(IntegrityError):
    """A bundle lacks a manifest that one of its indexes lists."""

    reference = "index-child-missing"
    hint = BlobMissingError.hint


class BadManifestError(IntegrityError):
    """A manifest or index cannot be understood or is refused."""

    reference = "bad-manifest"


class BadLayoutError(IntegrityError):
    """An OCI image layout is malformed or hostile."""

    reference = "bad-layout"


class LockMismatchError(IntegrityError):
    """bundle.lock.json and index.json do not describe the same images."""

    reference = "lock-mismatch"
    hint = "Run the same `bundle` command with --replace where the bundle was made; it writes both files anew."


class NotVerifiedError(IntegrityError):
    """What was pushed is not at the target when it is looked for afterwards."""

    reference = "not-verified"
    hint = (
        "Run the same `push` with --verify all, which sends what is missing. If it stays so, the registry loses "
        "content: tell its administrator."
    )


# --- 6: not raised yet: signatures and trust come with the signed lock --------------------------------------


class TrustError(AirgapSyncError):
    """A signature or its key is not trusted."""

    exit_code = 6
    family = "TrustError"
    reference = "untrusted"


# --- 7: the registry knows us, or wants to ------------------------------------------------------------------


class AuthError(AirgapSyncError):
    """The registry refuses us; never retried."""

    exit_code = 7
    family = "AuthError"
    reference = "auth"


class UnauthorizedError(AuthError):
    """The credentials were refused."""

    reference = "unauthorized"
    hint = "Check user name and password; `airgap-sync login HOST` tries them without touching anything."


class NoCredentialsError(AuthError):
    """The registry wants credentials and there are none."""

    reference = "no-credentials"
    hint = "Give --username NAME with --password-file FILE, or log in with `airgap-sync login` or `docker login`."


class DeniedError(AuthError):
    """The credentials are right but do not allow this."""

    reference = "denied"
    hint = "Ask the registry's administrator for pull (bundle) or push (push) rights on this repository."


# --- 8: the other side cannot be reached or is not well ----------------------------------------------------


class RegistryUnavailableError(AirgapSyncError):
    """A server cannot be reached, is overloaded or fails."""

    exit_code = 8
    family = "RegistryUnavailableError"
    reference = "registry-unavailable"
    retryable = True


class ConnectionFailedError(RegistryUnavailableError):
    """No connection: refused, no route, or the name does not resolve."""

    reference = "connection-failed"
    hint = "Check the host name, the port and that the server is up."


class NameNotResolvedError(ConnectionFailedError):
    """The host name does not resolve."""

    reference = "name-not-resolved"
    hint = "Check the host name for a typo, and this machine's DNS (/etc/resolv.conf, /etc/hosts)."


class ConnectRefusedError(ConnectionFailedError):
    """The host is there, and nothing listens on this port; or a firewall says no."""

    reference = "connection-refused"
    hint = "Check the port, and that the server is up; a firewall may refuse as well."


class ConnectTimeoutError(ConnectionFailedError):
    """Nothing answered the attempt to connect."""

    reference = "connect-timeout"
    hint = "Check the host and the route to it; a firewall may swallow the packets. A proxy is taken from HTTPS_PROXY."


class ProxyFailedError(ConnectionFailedError):
    """The proxy cannot be reached or refuses."""

    reference = "proxy-failed"


class ProxyCredentialsError(ProxyFailedError):
    """The proxy wants to know who we are; not tried again, which could lock an account."""

    reference = "proxy-credentials"
    retryable = False
    hint = "The proxy wants a user name and a password: write HTTPS_PROXY and HTTP_PROXY as http://user:password@host:port."


class BrokenConnectionError(RegistryUnavailableError):
    """The connection broke while bytes were on their way."""

    reference = "connection-reset"
    hint = (
        "Run the same command again: it continues. If it breaks again and again, something between here and there may "
        "limit the size or the time of a request; `push` has --chunk-size for that."
    )


class TimedOutError(RegistryUnavailableError):
    """The server did not answer in time."""

    reference = "timeout"
    hint = "The connection stands, and nothing came for as long as --timeout allows: raise it if the server is slow."


class TlsError(RegistryUnavailableError):
    """TLS could not be set up."""

    reference = "tls"
    retryable = False


class UnknownCaError(TlsError):
    """The server's certificate is issued by a CA that this machine does not know."""

    reference = "unknown-ca"


class WrongHostNameError(TlsError):
    """The server's certificate is for other names."""

    reference = "wrong-host-name"


class CertificateExpiredError(TlsError):
    """The server's certificate has expired, or is not valid yet."""

    reference = "certificate-expired"


class NotTlsError(TlsError):
    """The port does not speak TLS."""

    reference = "not-tls"


class TlsWantedError(TlsError):
    """Plain HTTP was spoken to a port that speaks TLS."""

    reference = "tls-wanted"
    hint = (
        "Write https:// or leave the scheme out. `bundle` asks this machine itself by plain HTTP, as K3s does: name "
        "https://HOST:PORT as endpoint of a mirror in --registries."
    )


class ClientCertificateError(TlsError):
    """The server wants a client certificate, or does not accept ours."""

    reference = "client-certificate"
    hint = "Give --client-cert FILE and --client-key FILE, issued by a CA that the server trusts."


class TooManyRequestsError(RegistryUnavailableError):
    """The registry limits our rate."""

    reference = "too-many-requests"
    hint = "Wait, log in for a higher limit, or pull through a mirror with --registries. The run can be repeated."


class ServerError(RegistryUnavailableError):
    """The server answered 5xx or something that makes no sense."""

    reference = "server-error"
    hint = "The log of the server, or of a proxy before it, says why. Run the same command again later: it continues."


class UnexpectedAnswerError(RegistryUnavailableError):
    """The server's answer is none that the protocol knows here."""

    reference = "unexpected-answer"
    retryable = False


class BodyTooLargeError(UnexpectedAnswerError):
    """Something on the way takes no body of this size."""

    reference = "body-too-large"
    hint = (
        "A proxy before the registry limits bodies (client_max_body_size of nginx, proxy-body-size of its ingress): "
        "raise it, or give --chunk-size below it."
    )


class ReadOnlyError(UnexpectedAnswerError):
    """The registry takes nothing at the moment."""

    reference = "read-only"
    hint = (
        "Ask Harbor's administrator to switch read-only mode off: Configuration, System Settings, Repository Read Only."
    )


class HarborUnhealthyError(UnexpectedAnswerError):
    """A part of Harbor that a push needs is down."""

    reference = "harbor-unhealthy"
    hint = "Ask Harbor's administrator; the push can be repeated when /api/v2.0/health says healthy."


class ReleaseListUnavailableError(RegistryUnavailableError):
    """No image list for this release: neither shipped nor at the release location."""

    reference = "release-list-unavailable"
    hint = "Give the place that holds the release's k3s-images.txt with --release-url URL|DIR."
    retryable = False


class BadReleaseListError(RegistryUnavailableError):
    """The release location answered with something that is not a list of references."""

    reference = "bad-release-list"
    hint = "A proxy or login page may have answered. Check --release-url, or use `--release-url shipped`."
    retryable = False


# --- 9: no room ---------------------------------------------------------------------------------------------


class CapacityError(AirgapSyncError):
    """There is no room left."""

    exit_code = 9
    family = "CapacityError"
    reference = "no-room"


class DiskFullError(CapacityError):
    """A local disk is full."""

    reference = "disk-full"
    hint = "Free space and run the same command again: it continues where it stopped."


class QuotaExceededError(CapacityError):
    """A project's storage quota does not suffice."""

    reference = "quota-exceeded"


# --- 10: some of it failed ------------------------------------------------------------------------------------


class PartialError(AirgapSyncError):
    """Some images failed; the report names each."""

    exit_code = 10
    family = "PartialError"
    reference = "images-failed"
    hint = "Mend what the failed images say and run the same command again; what is done is not done again."


# --- 11: the wrong thing for this place --------------------------------------------------------------------


class CompatibilityError(AirgapSyncError):
    """What is there does not fit what is wanted."""

    exit_code = 11
    family = "CompatibilityError"
    reference = "incompatible"


class WrongPlatformError(CompatibilityError):
    """An image exists, but for none of the chosen platforms."""

    reference = "wrong-platform"
    hint = "Choose one of the platforms that exist with --platform, or `--platform all`."


class ForeignLayersRefusedError(CompatibilityError):
    """A target refuses manifests whose layers name URLs."""

    reference = "foreign-layers-refused"
    hint = (
        "docker-registry answers such manifests with 500 unless its configuration allows their urls "
        "(validation.manifests.urls.allow) or switches validation off (validation.disabled: true)."
    )


class MediaTypeRefusedError(CompatibilityError):
    """A target does not take manifests of this media type."""

    reference = "media-type-refused"
    hint = (
        'zot takes Docker media types only with `"http": {"compat": ["docker2s2"]}` in its configuration. airgap-sync '
        "does not convert manifests, since that changes their digests."
    )


class ImmutableTagError(CompatibilityError):
    """A tag stands for other content, and a rule at the target forbids to move it."""

    reference = "immutable-tag"
    hint = (
        "Take the tag out of the project's immutability rules (Policy, Tag Immutability), delete it there, or push to "
        "another prefix."
    )


class HiddenByPolicyError(CompatibilityError):
    """An image exists, and a policy of its project does not let anybody pull it."""

    reference = "hidden-by-policy"
    hint = (
        "Nodes cannot pull it either: change the project's deployment security (Configuration: Prevent vulnerable "
        "images from running, Cosign), or add a CVE allowlist."
    )


class ProxyCacheProjectError(CompatibilityError):
    """A Harbor project caches another registry, and takes no pushes."""

    reference = "proxy-cache-project"
    hint = "Push to an ordinary project: put its name into TARGET."


class NotHarborError(CompatibilityError):
    """What answers is not Harbor."""

    reference = "not-harbor"
    hint = "Leave --target-type at auto, or check the host of the target."


class BundleFormatTooNewError(CompatibilityError):
    """A bundle or layout was written in a format that this version does not know."""

    reference = "bundle-format-too-new"
    hint = "Use the airgap-sync version that made the bundle, or a newer one."


class UnsupportedSkewError(CompatibilityError):
    """The versions in the bundle are no path that K3s can be upgraded along."""

    reference = "unsupported-skew"
    hint = (
        "Kubernetes supports one minor after the other: put the newest patch of each minor on the way into the bundle."
    )


class HopIncompleteError(CompatibilityError):
    """An upgrade cannot be planned because the bundle lacks some of its images."""

    reference = "hop-incomplete"
    hint = "Complete the bundle on the connected side: run the same `bundle` command again."


class FeatureMissingError(CompatibilityError):
    """A K3s version at the site cannot do what was chosen."""

    reference = "k3s-too-old"


# --- 12: somebody else is at it ---------------------------------------------------------------------------


class LockedError(AirgapSyncError):
    """Another run holds the lock."""

    exit_code = 12
    family = "LockedError"
    reference = "locked"
    hint = "Wait for the other run to end, then run this command again."
    retryable = True


# --- 13: a check found something -------------------------------------------------------------------------


class FindingsError(AirgapSyncError):
    """A check or a policy found something that must be mended."""

    exit_code = 13
    family = "FindingsError"
    reference = "findings"


class StrictWarningError(FindingsError):
    """A warning was met under --strict."""

    reference = "warning-under-strict"
    hint = "Mend the cause, or run without --strict to accept it."


class PreflightFailedError(FindingsError):
    """Nodes could not pull everything, or it could not be shown that they can."""

    reference = "preflight-failed"


def families() -> list[type[AirgapSyncError]]:
    """Return the family classes, ordered by exit code."""
    return sorted(AirgapSyncError.__subclasses__(), key=lambda cls: cls.exit_code)


def references_of(family: type[AirgapSyncError]) -> list[str]:
    """Return the references of a family's conditions in the order of their definition, each once."""

    def below(cls: type[AirgapSyncError]) -> Iterator[str]:
        for condition in cls.__subclasses__():
            yield condition.reference
            yield from below(condition)

    return list(dict.fromkeys(below(family))) or [family.reference]


def exit_code_table() -> str:
    """Return the Markdown table of exit codes for README.md."""
    rows = [
        "| code | family | references |",
        "| --- | --- | --- |",
        "| 0 | success | |",
        "| 1 | unexpected: a defect, please report it | unexpected |",
        "| 2 | usage: the command line is wrong | usage |",
    ]
    for family in families():
        words = ", ".join(f"`{word}`" for word in references_of(family))
        rows.append(f"| {family.exit_code} | {family.family} | {words} |")
    rows.append("| 128+n | ended by signal n (130: Ctrl-C, 143: SIGTERM); the same command continues | |")
    return "\n".join(rows) + "\n"
