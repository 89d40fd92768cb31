"""Media types and text of bodies. Needs only the standard library, since the stub uses it too."""

from mlops_build.serving.refusal import Refusal

SHOWN = 80
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")


def media_type(content_type: str | None) -> str:
    """The media type of a Content-Type, in lower case; empty for none."""
    return (content_type or "").partition(";")[0].strip().lower()


def check_parameters(content_type: str | None) -> None:
    """Raises Refusal (415) for a Content-Type with another charset than UTF-8, or other parameters."""
    _, *parameters = (part.strip() for part in (content_type or "").split(";"))
    values = {name.lower(): value for name, _, value in (parameter.partition("=") for parameter in parameters)}
    if values.get("charset", "utf-8").strip('"').lower() != "utf-8":
        raise Refusal("the charset must be UTF-8", status=415)
    if unknown := sorted(set(values) - {"charset"}):
        raise Refusal(f"Content-Type has unknown parameters: {', '.join(unknown)[:SHOWN]}", status=415)


def decoded(value: bytes, what: str) -> str:
    """UTF-8 as text. what: the name of the value in the message. Raises Refusal."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Refusal(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from None
