"""Warnings of the logger "mlops_build.gpu".

The first warning imports logging: warnings are rare, and the import takes a fifth as long as choosing a card.
"""


def warning(message: str, *arguments: object) -> None:
    """Like Logger.warning."""
    import logging

    logging.getLogger("mlops_build.gpu").warning(message, *arguments)
