"""The machine that the doctor runs on, as far as it shows how the application is deployed."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

MOUNTS = Path("/proc/self/mounts")
CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
CLUSTER_VARIABLES = {
    "KUBERNETES_SERVICE_HOST": "Kubernetes",
    "ECS_CONTAINER_METADATA_URI_V4": "ECS",
    "K_SERVICE": "Cloud Run",
    "FLY_MACHINE_ID": "Fly",
    "DYNO": "Heroku",
    "NOMAD_ALLOC_ID": "Nomad",
}
"""Variables that platforms set which run an application on as many hosts as they like."""
NETWORK_FILESYSTEMS = re.compile(
    r"nfs\d?|cifs|smb\w*|9p|afs|ceph|lustre|glusterfs|fuse\.(sshfs|glusterfs|s3fs|gcsfuse|ceph.*|juicefs)"
)
WORKER_OPTION = re.compile(r"(?:^|\s)(?:-w|--workers)[\s=]*(\d+)")


@dataclass(frozen=True, slots=True)
class Host:
    """What the system says. `mounts` is the text of /proc/self/mounts, empty where there is none."""

    environ: Mapping[str, str] = field(repr=False)
    mounts: str = ""
    is_container: bool = False

    @classmethod
    def here(cls) -> Self:
        """Return this host."""
        mounts = MOUNTS.read_text(errors="replace") if MOUNTS.exists() else ""
        return cls(os.environ, mounts, any(mark.exists() for mark in CONTAINER_MARKS))

    @property
    def platform(self) -> str | None:
        """The name of the platform, if it is one that runs applications on several hosts."""
        return next((name for variable, name in CLUSTER_VARIABLES.items() if self.environ.get(variable)), None)

    @property
    def workers(self) -> int | None:
        """How many worker processes the environment asks for; None where it does not say."""
        for variable in ("WEB_CONCURRENCY", "UVICORN_WORKERS"):
            text = self.environ.get(variable, "").strip()
            if text.isdecimal():
                return int(text)
        option = WORKER_OPTION.search(self.environ.get("GUNICORN_CMD_ARGS", ""))
        return int(option[1]) if option else None

    @property
    def trusted_proxies(self) -> str | None:
        """Whose forwarded headers uvicorn believes; None where only its default counts, 127.0.0.1."""
        for variable in ("UVICORN_FORWARDED_ALLOW_IPS", "FORWARDED_ALLOW_IPS"):
            if text := self.environ.get(variable, "").strip():
                return text
        return None

    def filesystem(self, path: Path) -> str:
        """Return the type of the filesystem that an absolute path lies on, such as `ext4`; empty where unknown."""
        best, kind = "", ""
        for line in self.mounts.splitlines():
            fields = line.split()
            if len(fields) < 3:  # noqa: PLR2004 - device, mount point, type
                continue
            point = fields[1].replace("\\040", " ")
            if path.is_relative_to(point) and len(point) >= len(best):
                best, kind = point, fields[2]
        return kind
