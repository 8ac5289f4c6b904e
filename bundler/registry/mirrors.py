"""One repository behind several endpoints, tried in order.

Source: containerd docs/hosts.md: hosts are tried in the order they are written, the default one last.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from bundler.errors import AirgapSyncError, ConnectionFailedError, IntegrityError, NotFoundError
from bundler.net import Http
from bundler.oci.content import BlobStream
from bundler.oci.descriptor import Descriptor
from bundler.oci.digest import Digest
from bundler.registry.foreign import open_foreign
from bundler.registry.host import ParkedError
from bundler.registry.repository import Repository

Result = TypeVar("Result")


class MirroredRepository:
    """A BlobSource over the endpoints of one repository.

    Whatever makes an endpoint fail, the next one is asked; if all fail, the error names every one of them.
    One that asks for a pause is passed over as well, and waited for only if no other has what is wanted.

    Args:
        repositories: The same content at each endpoint, in the order to try; at least one.
        http: For the URLs of foreign layers.
    """

    def __init__(self, repositories: list[Repository], http: Http) -> None:
        self._repositories = repositories
        self._http = http
        #: By blob: endpoints not to ask for it again, and the one asked last.
        self._skipped: dict[Digest, set[int]] = {}
        self._served: dict[Digest, int] = {}

    def head_manifest(self, reference: str) -> tuple[Digest, str] | None:
        """Return digest and media type of what a tag stands for; None if no endpoint has it."""
        try:
            return self._first(lambda repository: _found(repository.head_manifest(reference)))
        except NotFoundError:
            return None

    def get_manifest_by(self, reference: str) -> tuple[bytes, str, Digest]:
        """Return bytes, media type and digest of what a tag or digest stands for."""
        return self._first(lambda repository: repository.get_manifest_by(reference))

    def get_manifest(self, descriptor: Descriptor) -> bytes:
        """Return the verified bytes of a manifest or index."""
        return self._first(lambda repository: repository.get_manifest(descriptor))

    @contextmanager
    def open_blob(self, blob: Descriptor, offset: int = 0) -> Iterator[BlobStream]:
        """Open a blob at the first endpoint that has it; a foreign layer that none has, at its URLs."""

        def enter(context: AbstractContextManager[BlobStream]) -> tuple[AbstractContextManager[BlobStream], BlobStream]:
            return context, context.__enter__()

        def ask(repository: Repository) -> tuple[AbstractContextManager[BlobStream], BlobStream]:
            opened = enter(repository.open_blob(blob, offset))
            self._served[blob.digest] = self._repositories.index(repository)
            return opened

        try:
            context, stream = self._first(ask, self._skipped.get(blob.digest, set()))
        except NotFoundError as error:
            if not blob.urls:
                raise
            context, stream = self._foreign(blob, error, enter)
        try:
            yield stream
        finally:
            context.__exit__(None, None, None)

    def skip_endpoint(self, blob: Descriptor) -> bool:
        """Do not ask the endpoint that a blob came from last for it again; False if there is no other."""
        served = self._served.pop(blob.digest, None)
        skipped = self._skipped.setdefault(blob.digest, set())
        if served is None or len(skipped) + 1 >= len(self._repositories):
            return False
        skipped.add(served)
        return True

    def _foreign(
        self,
        blob: Descriptor,
        missing: NotFoundError,
        enter: Callable[[AbstractContextManager[BlobStream]], Result],
    ) -> Result:
        errors: list[AirgapSyncError] = [missing]
        for url in blob.urls:
            try:
                return enter(open_foreign(self._http, url, blob))
            except AirgapSyncError as error:
                errors.append(error)
        raise _combined(errors)

    def _first(self, ask: Callable[[Repository], Result], skipped: Collection[int] = ()) -> Result:
        errors: list[AirgapSyncError] = []
        parked: list[ParkedError] = []
        for number, repository in enumerate(self._repositories):
            if number in skipped:
                continue
            try:
                return ask(repository)
            except ParkedError as later:
                parked.append(later)
            except AirgapSyncError as error:
                errors.append(error)
        if parked:
            # The host that has to be waited for may have what the others do not.
            raise min(parked, key=lambda later: later.until)
        raise _combined(errors)


def _found(answer: tuple[Digest, str] | None) -> tuple[Digest, str]:
    if answer is None:
        raise NotFoundError("no such manifest")
    return answer


def _combined(errors: list[AirgapSyncError]) -> AirgapSyncError:
    """Return the most telling error (an answer before a silence), its message naming all of them."""
    if len(errors) == 1:
        return errors[0]
    wrong: list[AirgapSyncError] = [error for error in errors if isinstance(error, IntegrityError)]
    answers = [error for error in errors if not error.retryable and not isinstance(error, ConnectionFailedError)]
    telling = [*wrong, *answers, *errors][0]
    others = "; ".join(error.message for error in errors if error is not telling)
    combined = type(telling)(f"{telling.message}; also tried: {others}", hint=telling.hint, context=telling.context)
    combined.retryable = any(error.retryable for error in errors)
    return combined.with_traceback(telling.__traceback__)
