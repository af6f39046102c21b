"""What every command does at its start."""

import logging

from rich.console import Console
from rich.logging import RichHandler


def start() -> None:
    """Sends the package's log to stderr, plainly."""
    handler = RichHandler(
        console=Console(stderr=True, soft_wrap=True),
        show_time=False,
        show_level=False,
        show_path=False,
        markup=False,
        highlighter=None,
    )
    logger = logging.getLogger("ich_keras")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
