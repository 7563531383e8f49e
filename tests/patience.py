"""How long a store waits for its server where that is not the subject: as long as the tests do."""

from __future__ import annotations

import sys
from collections.abc import Callable

from processes import PATIENCE

STORES = "fastapi_otpless_session.stores"
NAMES = {
    f"{STORES}.sql_link": ("PATIENCE",),
    f"{STORES}.redis_link": ("PATIENCE", "CONNECT_SECONDS"),
    f"{STORES}.redis_cluster": ("ASK_SECONDS", "NODE_SECONDS"),
}


def be_patient(set_to: Callable[[object, str, float], None] = setattr) -> None:
    """Lengthen the patience of the stores that are imported: a busy machine is no fault."""
    for module, names in NAMES.items():
        for name in names if module in sys.modules else ():
            set_to(sys.modules[module], name, PATIENCE)
