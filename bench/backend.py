"""The backend: a real nginx over TLS that stands where a member's apiserver would.

Bulk comes from a file in the page cache; small answers have bodies of 1 KiB. An upload is read to its end (into memory
backed files) before it is answered, on the direct way as through the tunnel.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bench.longway import LongWay
from tests.lab.pki import ClusterCA, write_kubeconfig
from tests.lab.processes import Child, free_ports, wait_until

BULK_BYTES = 512 * 1024 * 1024
SMALL_BYTES = 1024

_CONFIG = """
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_timeout 300s;
  keepalive_requests 100000000;
  client_max_body_size 2g;
  client_body_buffer_size 1m;
  client_body_temp_path {temporary};
  proxy_temp_path {temporary};
  fastcgi_temp_path {temporary};
  uwsgi_temp_path {temporary};
  scgi_temp_path {temporary};
  server {{
    listen 127.0.0.1:{port} ssl backlog=4096 reuseport;
    {listens}
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.2 TLSv1.3;
    root {folder}/www;
    location = /readyz {{ return 200 "ok"; }}
    location = /version {{ default_type application/json; return 200 '{{"gitVersion":"v1.35.4"}}'; }}
    location /upload {{ proxy_pass http://127.0.0.1:{sink}; proxy_http_version 1.1; }}
  }}
  server {{ listen 127.0.0.1:{sink} backlog=4096; location / {{ return 200; }} }}
}}
"""


class Backend:
    """nginx with its certificate, and a kubeconfig that names it as a member's apiserver.

    Args:
        way: at whose far end it stands, reached from here at `way.member`; None for this machine's own loopback.
    """

    def __init__(self, folder: Path, *, way: LongWay | None = None) -> None:
        self.folder = folder
        self._temporary = Path("/dev/shm") / f"tower-bench-{os.getpid()}"
        self._temporary.mkdir()
        # nginx's workers run as an unprivileged user of Debian's choice when the master is root.
        self._temporary.chmod(0o777)
        www = folder / "www"
        www.mkdir(parents=True)
        for parent in (folder, *folder.parents):
            if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
        with (www / "bulk").open("wb") as file:
            block = os.urandom(1024 * 1024)
            for _ in range(BULK_BYTES // len(block)):
                file.write(block)
        with (www / "part").open("wb") as file:
            file.write(os.urandom(BULK_BYTES // 8))
        (www / "small").write_bytes(os.urandom(SMALL_BYTES))
        ca = ClusterCA(folder, "bench-ca")
        serving = ca.server("nginx", ["127.0.0.1", "localhost"])
        self.port, sink = free_ports(2)
        config = folder / "nginx.conf"
        config.write_text(
            _CONFIG.format(
                folder=folder,
                temporary=self._temporary,
                port=self.port,
                listens=f"listen {way.member}:{self.port} ssl backlog=4096;" if way is not None else "",
                sink=sink,
                certificate=serving.certificate,
                key=serving.key,
            )
        )
        self.kubeconfig = write_kubeconfig(
            folder / "member.kubeconfig",
            name="bench",
            server=f"https://127.0.0.1:{self.port}",
            ca=ca.pem,
            client=ca.client("agent", "bench-agent"),
        )
        nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or "nginx"
        namespace = way.name if way is not None else None
        self._nginx = Child("nginx", [nginx, "-c", str(config)], log=folder / "nginx.log", namespace=namespace)
        wait_until(lambda: (folder / "nginx.pid").exists(), "pid file of nginx", 10)

    @property
    def bulk_file(self) -> Path:
        """What is downloaded and uploaded."""
        return self.folder / "www" / "bulk"

    @property
    def bulk_part(self) -> Path:
        """An eighth of it."""
        return self.folder / "www" / "part"

    def stop(self) -> None:
        """End nginx and remove what lay in memory."""
        self._nginx.stop()
        shutil.rmtree(self._temporary, ignore_errors=True)
