"""The type of a key of service.yaml with the reason for an exception."""

from typing import Annotated

from pydantic import BeforeValidator, StringConstraints

from mlops_build import reason

# The constraints are for the JSON schema; `checked` comes first, so that the message is ours.
Reason = Annotated[str, StringConstraints(min_length=1, max_length=reason.LENGTH), BeforeValidator(reason.checked)]
