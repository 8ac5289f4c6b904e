"""Foreign layers: content that a registry need not have, because its descriptor names URLs for it.

The URLs come from whoever made the image, so only public https addresses are asked, and without any credential.

Source: image-spec layer.md, "Non-Distributable Layers"; descriptor.md, "urls".
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus

from bundler.errors import BlobUnknownError, ServerError
from bundler.net import Http
from bundler.oci.content import BlobStream
from bundler.oci.descriptor import Descriptor
from bundler.registry.body import BodyStream
from bundler.url import redact


@contextmanager
def open_foreign(http: Http, url: str, blob: Descriptor) -> Iterator[BlobStream]:
    """Open a foreign layer at one of its URLs, from its start.

    Raises:
        UnexpectedAnswerError: The URL is not public https, or redirects to one that is not.
        BlobUnknownError: The server does not have it.
        RegistryUnavailableError: Not reachable.
    """
    response = http.request("GET", url, public_only=True)
    with response:
        if response.status == HTTPStatus.TOO_MANY_REQUESTS or response.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            raise ServerError(f"{redact(url)} answered {response.status} for the foreign layer {blob.digest}")
        if response.status != HTTPStatus.OK:
            raise BlobUnknownError(f"{redact(url)} answered {response.status} for the foreign layer {blob.digest}")
        yield BodyStream(response, 0)
