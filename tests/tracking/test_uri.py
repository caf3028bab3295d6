from __future__ import annotations

import http.server
import os
import re
import shlex
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_fusion.errors import InputError
from tune_fusion.passwords import redact
from tune_fusion.tracking import uri as uri_module
from tune_fusion.tracking.uri import absolute, check_tracking, database_path, run_url, ui_command


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "text.db").write_text("not a database, but long enough to be read")
    (tmp_path / "notes.db").write_bytes(b"")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE invoices (id INTEGER)")
    return tmp_path


def snapshot(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    ("uri", "rule", "advice"),
    [
        ("", "it is empty", "sqlite:///FILE"),
        ("mlruns", "plain folders", "sqlite:///mlruns/mlflow.db"),
        ("./mlruns", "plain folders", "sqlite:///mlruns/mlflow.db"),
        ("runs.db", "a path is not a URI", "sqlite:///runs.db"),
        ("file:///tmp/mlruns", "plain folders", "sqlite:////tmp/mlruns/mlflow.db"),
        ("file:mlruns", "plain folders", "sqlite:///mlruns/mlflow.db"),
        ("sqlite:///missing/mlflow.db", "folder .*missing does not exist", "mkdir -p"),
        ("sqlite:///mlruns", "is a folder", "mlruns/mlflow.db"),
        ("sqlite:///text.db", "not a SQLite database", "choose another file"),
        ("sqlite:///other.db", "database of something else .*invoices", "choose another file"),
        ("sqlite://mlflow.db", "three slashes", "sqlite:///mlflow.db"),
        ("sqlite:mlflow.db", "three slashes", "sqlite:///mlflow.db"),
        ("sqlite://", "outlive the search", "sqlite:///mlflow.db"),
        ("sqlite:///:memory:", "outlive the search", "sqlite:///mlflow.db"),
        ("sqlite:///file:x.db?uri=true", "outlive the search", "sqlite:///mlflow.db"),
        ("sqlite:///a%20b.db", "contains '%'", "choose another path"),
        ("sqlite+aiosqlite:///x.db", "unknown driver", "sqlite:///FILE"),
        ("sqllite:///x.db", "unknown kind of store 'sqllite'", "did you mean 'sqlite'"),
        ("htp://host:5000", "unknown kind of store 'htp'", "did you mean 'http'"),
        ("ftp://host/x", "unknown kind of store 'ftp'", "http"),
        ("http+unix://host", "unknown kind of store 'http.unix'", "http"),
        ("databricks", "a path is not a URI", "sqlite:///"),
        ("databricks://me", "unknown kind of store 'databricks'", "known: sqlite"),
        ("postgres://u:secret@h/d", "unknown kind of store 'postgres'", "did you mean 'postgresql'"),
        ("localhost:5000", "starts with http", "http://localhost:5000"),
        ("postgresql+pg8000://h/d", "unknown database driver", "postgresql"),
        ("http://127.0.0.1:99999", "not a valid URL|cannot be reached", "correct"),
        ("http://me:a secret@host", "contains a blank", "%20"),
        ("http://", "not a valid URL|cannot be reached", "correct"),
    ],
)
def test_refused_with_rule_and_advice_and_nothing_made(
    folder: Path, uri: str, rule: str, advice: str
) -> None:
    before = snapshot(folder)
    with pytest.raises(InputError) as caught:
        check_tracking(uri)
    message = str(caught.value)
    assert message.startswith("tracking URI ")
    assert re.search(rule, message)
    assert advice in message
    assert "secret" not in message
    assert snapshot(folder) == before


@pytest.mark.parametrize("name", ["new.db", "notes.db"])
def test_a_new_or_empty_sqlite_file_will_do(folder: Path, name: str) -> None:
    before = snapshot(folder)
    check_tracking(f"sqlite:///{name}")
    check_tracking(f"sqlite+pysqlite:///{folder}/{name}")
    assert snapshot(folder) == before


def test_an_mlflow_database_will_do(uri: str) -> None:
    check_tracking(uri)


@pytest.mark.parametrize(
    ("revision", "rule"),
    [("451aebb31d03", "older MLflow .*mlflow db upgrade sqlite"), ("ffffffffffff", "newer MLflow")],
)
def test_a_database_of_another_mlflow_is_refused(database: Path, uri: str, revision: str, rule: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    with pytest.raises(InputError, match=rule):
        check_tracking(uri)


def test_a_damaged_database_is_refused(database: Path, uri: str) -> None:
    content = bytearray(database.read_bytes())
    content[100:4096] = b"\xff" * 3996
    database.write_bytes(content)
    with pytest.raises(InputError, match="damaged SQLite database"):
        check_tracking(uri)


def test_a_database_that_is_written_at_the_moment_will_do(database: Path, uri: str) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        check_tracking(uri)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_unwritable(folder: Path, database: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Root may write everywhere, so the question is answered here for the named path only."""
    locked = database if kind == "file" else database.parent
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != locked and real(path, mode))
    with pytest.raises(InputError, match=r"not (readable and )?writable"):
        check_tracking(f"sqlite:///{database}")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_is_not_there(scheme: str) -> None:
    port = free_port()
    with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port}.*cannot be reached .*refused"):
        check_tracking(f"{scheme}://me:secret@127.0.0.1:{port}")


def test_a_database_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uri_module._DRIVERS, "postgresql+psycopg", "sqlite3")
    port = free_port()
    with pytest.raises(InputError) as caught:
        check_tracking(f"postgresql://me:secret@127.0.0.1:{port}/runs")
    assert f"127.0.0.1 port {port}: Connection refused" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_database_server_without_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uri_module._DRIVERS, "mysql+pymysql", "surely_not_installed")
    with pytest.raises(InputError, match=r"Python package that is missing .surely_not_installed."):
        check_tracking("mysql+pymysql://me:secret@127.0.0.1/runs")


def test_a_database_server_that_accepts_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(uri_module._DRIVERS, "mysql+pymysql", "sqlite3")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        check_tracking(f"mysql+pymysql://127.0.0.1:{listener.getsockname()[1]}/runs")
    check_tracking("mysql+pymysql:///runs?unix_socket=/run/mysqld.sock")


def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uri_module, "PATIENCE", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        pytest.raises(InputError, match="cannot be reached"),
    ):
        check_tracking(f"http://127.0.0.1:{listener.getsockname()[1]}")


@pytest.fixture
def answering() -> Iterator[Callable[[int, str], tuple[str, list[str]]]]:
    """Start a server that gives everyone the same answer and notes who asked."""
    running: list[http.server.HTTPServer] = []

    def start(status: int, body: str) -> tuple[str, list[str]]:
        asked: list[str] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(f"{self.path} {self.headers.get('Authorization')}")
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        running.append(server)
        return f"127.0.0.1:{server.server_port}", asked

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "rule"),
    [
        (200, "<html>hello</html>", "not an MLflow server"),
        (200, "[]", "not an MLflow server"),
        (404, "nothing here", "not an MLflow server"),
        (502, "bad gateway", "HTTP 502"),
        (401, "who are you", "refuses the login .HTTP 401.*MLFLOW_TRACKING_USERNAME"),
        (403, "{}", "refuses the login"),
    ],
)
def test_a_server_that_is_not_ours(
    answering: Callable[[int, str], tuple[str, list[str]]], status: int, body: str, rule: str
) -> None:
    address, _ = answering(status, body)
    with pytest.raises(InputError, match=rule):
        check_tracking(f"http://{address}")


@pytest.mark.parametrize("status", [200, 404])
def test_an_mlflow_server_behind_a_prefix_with_a_login(
    answering: Callable[[int, str], tuple[str, list[str]]], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    body = '{"experiment": {}}' if status == 200 else '{"error_code": "RESOURCE_DOES_NOT_EXIST"}'
    address, asked = answering(status, body)
    check_tracking(f"http://me:p%40ss@{address}/mlflow/")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abc")
    check_tracking(f"http://{address}")
    question = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert asked == [f"/mlflow{question} Basic bWU6cEBzcw==", f"{question} Bearer abc"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:secret@host:5432/runs", "postgresql://me:***@host:5432/runs"),
        ("http://me:se/cr#et@host/x", "http://me:***@host/x"),
        ("http://me:a@b@host", "http://me:***@host"),
        ("http://:secret@host", "http://:***@host"),
        ("mysql://host/d?user=u&password=secret&ssl=1", "mysql://host/d?user=u&password=***&ssl=1"),
        (
            "GET https://me:secret@host/a failed, see http://b:5/c",
            "GET https://me:***@host/a failed, see http://b:5/c",
        ),
        ("s3://b/x?region=x&secret_key=secret", "s3://b/x?region=x&secret_key=***"),
        ("s3://b/x?endpoint_override=me:secret@h:9&a=b", "s3://b/x?endpoint_override=me:***@h:9&a=b"),
        ("s3://b/x?endpoint_override=h:9&user=me@x", "s3://b/x?endpoint_override=h:9&user=me@x"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////tmp/a:b.db", "sqlite:////tmp/a:b.db"),
    ],
)
def test_redact(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:p%40ss/wxyz@host/runs",
        "http://me:p%40ss/wxyz@host",
        "mysql://host/runs?user=me&password=p%40ss/wxyz",
    ],
)
@pytest.mark.parametrize("shown", ["p%40ss/wxyz", "p@ss/wxyz"])
def test_a_password_is_hidden_outside_its_uri_too(uri: str, shown: str) -> None:
    assert redact(f"no such user ('me', '{shown}')", uri) == "no such user ('me', '***')"
    assert redact(uri, uri).count("***") == 1
    assert "wxyz" not in redact(uri, uri)


def test_a_short_password_spoils_no_words() -> None:
    assert redact("a bad host: http://me:a@host", "http://me:a@host") == "a bad host: http://me:***@host"


@given(
    st.text(
        st.characters(codec="ascii", exclude_characters=" \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"), min_size=1
    ).map(lambda text: f"Q{text}Q")
)
def test_no_password_is_ever_shown(password: str) -> None:
    assert redact(f"failed: postgresql://me:{password}@host/runs") == "failed: postgresql://me:***@host/runs"


def test_paths_are_absolute(folder: Path) -> None:
    assert absolute("sqlite:///mlflow.db") == f"sqlite:///{folder}/mlflow.db"
    assert absolute("sqlite:///sub/../x.db?timeout=5") == f"sqlite:///{folder}/x.db?timeout=5"
    assert absolute(f"sqlite:///{folder}/mlflow.db") == f"sqlite:///{folder}/mlflow.db"
    assert absolute("http://host:5000") == "http://host:5000"
    assert database_path("http://host") is None
    assert database_path("sqlite://") is None


def test_ui_command(folder: Path) -> None:
    command = ui_command("sqlite:///my runs.db", python="/opt/my python")
    assert shlex.split(command) == [
        *("/opt/my python", "-m", "mlflow", "ui", "--backend-store-uri"),
        f"sqlite:///{folder}/my runs.db",
        *("--port", "5000"),
    ]
    assert shlex.split(ui_command("sqlite:///x.db"))[0] == sys.executable
    assert ui_command("https://me:secret@host/mlflow") == "https://host/mlflow"
    assert "secret" not in ui_command("postgresql://me:secret@host/runs")


def test_run_url() -> None:
    assert run_url("http://me:x@host:1/", "4", "abc") == "http://host:1/#/experiments/4/runs/abc"
    assert run_url("sqlite:///x.db", "4", "abc") == "http://127.0.0.1:5000/#/experiments/4/runs/abc"


def test_nothing_here_imports_mlflow() -> None:
    code = (
        "import sys; from tune_fusion.tracking.mlflow_logger import MlflowLogger, check_tracking;"
        "check_tracking('sqlite:///none.db');"
        "print([name for name in ('mlflow', 'torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_offline_a_store_is_not_asked_but_its_uri_is_checked(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InputError, match="cannot be reached"):
        check_tracking(url)
    check_tracking(url, offline=True)
    for wrong in ("htp://host:1", str(tmp_path), f"sqlite:///{tmp_path}/none/mlflow.db"):
        with pytest.raises(InputError):
            check_tracking(wrong, offline=True)
