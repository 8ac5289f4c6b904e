"""One registry host: challenges, manifests, blobs. Knows nothing of layouts."""
