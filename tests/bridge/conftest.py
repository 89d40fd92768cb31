from tests.release.world import alone, checkout, empty_database, make_repository, promote, register, registry, remote

__all__ = ["alone", "checkout", "empty_database", "make_repository", "promote", "register", "registry", "remote"]
