"""The type of a key of service.yaml with the reason for an exception."""

from typing import Annotated

from pydantic import AfterValidator, StringConstraints

from mlops_build import reason

Reason = Annotated[str, StringConstraints(min_length=1, max_length=reason.LENGTH), AfterValidator(reason.checked)]
