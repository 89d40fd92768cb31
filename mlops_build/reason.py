"""A reason that a person gives for an exception. It is copied into manifests, the environment of the pods and their log."""

LENGTH = 500


def checked(text: object) -> str:
    """`text`, if it is one line of printable characters. Raises ValueError with what is allowed."""
    # Kubernetes replaces $(NAME) in the value of a variable by another variable, which may be a secret.
    if isinstance(text, str) and text and text.isprintable() and text == text.strip() and len(text) <= LENGTH and "$(" not in text:
        return text
    raise ValueError(f"{text!r:.100} is not a reason: write one line of 1 to {LENGTH} printable characters, in quotes and without $(")
