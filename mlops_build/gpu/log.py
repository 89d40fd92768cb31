"""What must be said aloud: warnings of the logger "mlops_build.gpu".

logging is imported by the first one: there seldom is one, and its import takes a fifth as long as choosing a card.
"""


def warning(message: str, *arguments: object) -> None:
    """As Logger.warning."""
    import logging

    logging.getLogger("mlops_build.gpu").warning(message, *arguments)
