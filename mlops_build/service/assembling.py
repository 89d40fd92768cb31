"""Whether an agent assembles a service's images in their registry, or builds them with an engine."""

from mlops_build.adapters import image_registry
from mlops_build.errors import MlopsBuildError, Refused
from mlops_build.service import Service


def refusal(service: Service) -> MlopsBuildError | None:
    """Why images are not assembled here; None if they are. Asks the registry whether it accepts a push."""
    if not service.image.assemble:
        return Refused("service.yaml has image.assemble: false")
    try:
        image_registry.Repository(f"{service.image.registry}/{service.name}").check_push()
    except MlopsBuildError as error:
        return error
    return None
