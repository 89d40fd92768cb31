"""A reason that a person gives for an exception. It goes on into manifests, the environment of a pod and its log."""

LENGTH = 500


def checked(text: str) -> str:
    """`text`, if it is one line of printable characters. Raises ValueError with what is allowed."""
    # Kubernetes replaces $(NAME) in the value of a variable by another variable, which may be a secret.
    if not text.isprintable() or text != text.strip() or not text or len(text) > LENGTH or "$(" in text:
        raise ValueError(f"{text[:100]!r} is not a reason: write one line of 1 to {LENGTH} printable characters, without $(")
    return text
