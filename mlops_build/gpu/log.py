"""Warnings of the logger "mlops_build.gpu". prefix: of each warning.

The first warning imports logging: warnings are rare, and the import takes a fifth as long as choosing a card.
"""

prefix = ""


def warning(message: str, *arguments: object) -> None:
    """Like Logger.warning."""
    import logging

    logging.getLogger("mlops_build.gpu").warning(prefix + message, *arguments)
