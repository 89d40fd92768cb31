"""Load slots, which limit how many services load onto a card at the same time (`loading` in /etc/mlops-gpu.toml).

Services that load within their budgets need none. They are for services that use more than their budget while they load.
"""

import time
from collections.abc import Sequence

from mlops_build.gpu import log
from mlops_build.gpu.declared import BadConfig, settings
from mlops_build.gpu.directory import NoLedger
from mlops_build.gpu.ledger import Ledger

# A model loads in seconds to minutes. After this time a service loads without a slot: a service that hangs must not block the others.
SECONDS = 120.0


def enter(ledger: Ledger, uuids: Sequence[str], seconds: float = SECONDS) -> list[int]:
    """Take a load slot of each card. Waits at most `seconds` in total, and then continues without, with a warning.

    Returns descriptors. A slot is free once every process has closed its descriptor.
    """
    deadline, descriptors = time.monotonic() + seconds, []
    try:
        count = settings().loading
    except BadConfig as error:
        log.warning("%s; one service loads at a time", error)
        count = 1
    for uuid in sorted(uuids):  # the same order everywhere, so that two services with two cards do not deadlock
        names = [f"load-{uuid.replace('/', '_')}-{number}" for number in range(count)]
        try:
            descriptor = ledger.slot(names)
            if descriptor is None:
                left = max(0.0, deadline - time.monotonic())
                log.warning("waiting to load onto %s: another service is loading (at most %.0f s)", uuid, left)
                descriptor = ledger.slot(names, left)
        except NoLedger as error:
            log.warning("loading without a load slot: %s", error)
            continue
        if descriptor is None:
            log.warning("loading onto %s without a load slot: other services are still loading", uuid)
        else:
            descriptors.append(descriptor)
    return descriptors
