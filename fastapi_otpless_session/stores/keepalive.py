"""How the system asks whether an idle connection is still there: a firewall that forgot it would not tell.

After a minute, and then three times in half a minute. Else the first call for a while would wait in vain.
"""

from __future__ import annotations

import socket

_WANTED = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}

KEEPALIVE = {getattr(socket, name): value for name, value in _WANTED.items() if hasattr(socket, name)}
"""Options of TCP; not all systems have all of them."""
