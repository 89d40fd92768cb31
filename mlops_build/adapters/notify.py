"""Messages to people by apprise: Mattermost, Slack, mail, a webhook."""

import logging
import os
import re

from mlops_build.errors import Failed

# A part of an address that is secret is in the environment: fleet.yaml may be in Git. Other variables are not for this.
VARIABLE = re.compile(r"\$\{(MLOPS_NOTIFY_[A-Z0-9_]{1,100})\}")
SCHEME = re.compile(r"([a-zA-Z0-9]+)://")
LENGTH = 2000


class NotSent(Failed):
    """A message that was not accepted."""


def send(address: str, title: str, text: str) -> None:
    """Send a message to an address of apprise, in which `${MLOPS_NOTIFY_…}` is replaced. Raises NotSent; no error has the address."""
    from apprise import Apprise, NotifyFormat

    shown = (SCHEME.match(address) or ["", "unknown"])[1]
    missing = [name for name in VARIABLE.findall(address) if not os.environ.get(name)]
    if missing:
        raise NotSent(f"{', '.join(missing)} is not set, so nothing is sent to {shown}://…", remedy="set it where this runs")
    for noisy in ("apprise", "requests", "urllib3"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    receiver = Apprise()
    if not receiver.add(VARIABLE.sub(lambda match: os.environ[match[1]], address)):
        raise NotSent(f"{shown}://… is not an address of apprise", remedy="see https://appriseit.com/services for the addresses")
    if not receiver.notify(body=text[:LENGTH], title=title[:200], body_format=NotifyFormat.TEXT):
        raise NotSent(
            f"{shown}://… did not accept the message", remedy="try it with apprise's own command: apprise --verbose --body=test ADDRESS"
        )
