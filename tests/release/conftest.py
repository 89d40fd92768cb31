from tests.release.world import alone, checkout, empty_database, make_repository, promote, register, registry, released, remote, run

__all__ = ["alone", "checkout", "empty_database", "make_repository", "promote", "register", "registry", "released", "remote", "run"]
