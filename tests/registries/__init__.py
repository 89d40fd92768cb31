"""A stand-in for an image registry, which can be made to fail at any request."""

from tests.registries.distribution import Fault, Registry, Seen, digest_of, serve

__all__ = ["Fault", "Registry", "Seen", "digest_of", "serve"]
