"""Tracking URIs: what one may look like, whether its store answers, and how to look at it.

Nothing here imports MLflow, which takes seconds: a mistaken URI is refused before a search pays for that.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import shlex
import socket
import sqlite3
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from tune_fusion.errors import InputError, suggest
from tune_fusion.passwords import redact

UI_PORT = 5000
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")
PATIENCE = 5.0
"""Seconds a server has for its answer."""

_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_DRIVERS = {
    "postgresql+psycopg": "psycopg",
    "postgresql+psycopg2": "psycopg2",
    "mysql+mysqldb": "MySQLdb",
    "mysql+pymysql": "pymysql",
    "mssql+pyodbc": "pyodbc",
    "mssql+pymssql": "pymssql",
}
_SQLITE_HEADER = b"SQLite format 3\x00"
_REVISION = re.compile(r'^(down_revision|revision) = "(\w+)"', re.MULTILINE)


def absolute(uri: str) -> str:
    """`uri` with a SQLite path made absolute, so that a later change of the working folder moves nothing."""
    path = database_path(uri)
    return uri if path is None else f"{uri.split(':', 1)[0]}:///{path}{_query(uri)}"


def database_path(uri: str) -> Path | None:
    """The absolute path of a SQLite store's file; None for every other kind of store."""
    scheme, _, rest = uri.partition(":///")
    if scheme.split("+")[0].lower() != "sqlite" or not rest:
        return None
    return Path(os.path.abspath(rest.partition("?")[0]))  # noqa: PTH100 - resolve() would follow links


def ui_command(uri: str, python: str = sys.executable) -> str:
    """What opens the MLflow UI on the store: a shell command, or for a server the URL to open.

    The command is quoted for a POSIX shell and serves ``http://127.0.0.1:5000``. A password in the URI is
    replaced by ``***`` and has to be filled in.
    """
    if _is_server(uri):
        return _public(uri)
    words = [python, "-m", "mlflow", "ui", "--backend-store-uri", redact(absolute(uri))]
    return shlex.join([*words, "--port", str(UI_PORT)])


def run_url(uri: str, experiment_id: str, run_id: str) -> str:
    """Where a run is seen: on the server, or on the UI that `ui_command` starts."""
    root = _public(uri) if _is_server(uri) else f"http://127.0.0.1:{UI_PORT}"
    return f"{root.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"


def check_tracking(uri: str, *, offline: bool = False) -> None:
    """Refuse a tracking URI whose store cannot be logged to; creates and changes nothing.

    SQLite files are opened read-only, servers are asked one question and databases get a TCP connection; the
    answer comes within about five seconds. `offline`: servers and databases are not asked.

    Raises:
        InputError: unknown kind of store, a folder, an unusable SQLite file, or a store that does not answer.
    """
    scheme, separator, rest = uri.partition(":")
    scheme = scheme.lower()
    if not separator or scheme == "file" or Path(uri).exists():
        raise InputError(_no_folder(uri))
    dialect = scheme.split("+")[0]
    if dialect not in SCHEMES or (dialect.startswith("http") and scheme != dialect):
        raise InputError(_unknown_scheme(uri, scheme, rest))
    if dialect != "sqlite" and any(letter.isspace() for letter in uri):
        # It is not shown: where a password with a blank ends is anyone's guess.
        raise InputError(f"tracking URI {scheme}:...: it contains a blank; write %20 for it.")
    if dialect == "sqlite":
        _check_sqlite(uri)
    elif dialect in _PORTS:
        _check_driver(uri, scheme)
        if not offline:
            _within(PATIENCE, lambda: _check_port(uri, _PORTS[dialect]), uri)
    elif not offline:
        _within(PATIENCE, lambda: _check_server(uri), uri)


def _is_server(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))


def _query(uri: str) -> str:
    _, mark, query = uri.partition("?")
    return mark + query


def _public(uri: str) -> str:
    """The URL without the user and password that may stand in it."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _no_folder(uri: str) -> str:
    path = uri.partition(":")[2].lstrip("/") if uri.lower().startswith("file:") else uri
    path = "/" + path if uri.lower().startswith("file:///") else path
    if not path:
        return "tracking URI '': it is empty; give sqlite:///FILE or a server's http://HOST:PORT."
    file = path if Path(path).suffix in (".db", ".sqlite", ".sqlite3") else str(Path(path) / "mlflow.db")
    return (
        f"tracking URI {uri!r}: MLflow no longer keeps runs in plain folders and a path is not a URI; "
        f"give a SQLite file, sqlite:///{file}, or a server's http://HOST:PORT."
    )


def _unknown_scheme(uri: str, scheme: str, rest: str) -> str:
    if re.match(r"\d+(/|$)", rest):
        return f"tracking URI {uri!r}: a server's address starts with http:// or https://; give http://{uri}."
    nearest = suggest(scheme, SCHEMES)
    return f"tracking URI {redact(uri)!r}: unknown kind of store {scheme!r}; {nearest}"


# SQLite


def _check_sqlite(uri: str) -> None:
    where = f"tracking URI {uri!r}"
    path = database_path(uri)
    scheme, _, rest = uri.partition(":")
    if scheme.lower() not in ("sqlite", "sqlite+pysqlite"):
        raise InputError(f"{where}: unknown driver; write sqlite:///FILE.")
    if not rest.startswith("///") and rest.strip("/"):
        raise InputError(
            f"{where}: three slashes come before the file; "
            f"write sqlite:///{rest.lstrip('/')} (relative) or sqlite:////folder/FILE (absolute)."
        )
    if path is None or rest.removeprefix("///").startswith((":memory:", "file:")):
        raise InputError(f"{where}: a store must outlive the search; name a file, sqlite:///mlflow.db.")
    if "%" in str(path):
        raise InputError(f"{where}: MLflow cannot open a SQLite path that contains '%'; choose another path.")
    if path.is_dir():
        raise InputError(f"{where}: {path} is a folder; name a file in it, sqlite:///{path / 'mlflow.db'}.")
    if not path.parent.is_dir():
        raise InputError(
            f"{where}: the folder {path.parent} does not exist; make it first "
            f"(mkdir -p {shlex.quote(str(path.parent))})."
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(
            f"{where}: the folder {path.parent} is not writable, as SQLite needs it; choose another file."
        )
    if path.exists():
        _check_database(where, path)


def _check_database(where: str, path: Path) -> None:
    if not os.access(path, os.R_OK | os.W_OK):
        raise InputError(f"{where}: {path} is not readable and writable; change its mode or choose another.")
    try:
        with path.open("rb") as file:
            header = file.read(len(_SQLITE_HEADER))
    except OSError as error:
        raise InputError(
            f"{where}: {path} cannot be read ({error.strerror}); choose another file."
        ) from error
    if header == b"":
        return
    if header != _SQLITE_HEADER:
        raise InputError(
            f"{where}: {path} is not a SQLite database; choose another file, nothing was changed."
        )
    try:
        tables, revision = _read_schema(path)
    except sqlite3.OperationalError:
        return  # another process holds it for the moment; MLflow waits for the lock
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"{where}: {path} is a damaged SQLite database ({error}); restore it or choose another file."
        ) from error
    if tables and "experiments" not in tables:
        raise InputError(
            f"{where}: {path} is the database of something else (it holds {', '.join(sorted(tables)[:3])}); "
            "choose another file, MLflow would add its tables to it."
        )
    if revision is not None:
        _check_revision(where, path, revision)


def _read_schema(path: Path) -> tuple[set[str], str | None]:
    """The names of the tables, and the schema revision that alembic noted."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=1.0)) as connection:
        tables = {
            name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        }
        row = None
        if "alembic_version" in tables:
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return tables, row[0] if row else None


def _check_revision(where: str, path: Path, revision: str) -> None:
    known, head = _mlflow_revisions()
    if head is None or revision == head:
        return
    if revision in known:
        upgrade = shlex.join([sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{path}"])
        raise InputError(
            f"{where}: {path} was made by an older MLflow (schema {revision}, this one needs {head}); "
            f"choose another file, or back it up and run: {upgrade}"
        )
    raise InputError(
        f"{where}: {path} was made by a newer MLflow (schema {revision}, this one knows up to {head}); "
        "choose another file or install that MLflow."
    )


def _mlflow_revisions() -> tuple[set[str], str | None]:
    """All schema revisions the installed MLflow knows and the newest, read from its files, not imported."""
    spec = importlib.util.find_spec("mlflow")
    roots = spec.submodule_search_locations if spec else None
    known: set[str] = set()
    followed: set[str] = set()
    for root in roots or ():
        for file in Path(root, "store", "db_migrations", "versions").glob("*.py"):
            for kind, value in _REVISION.findall(file.read_text(encoding="utf-8")):
                (known if kind == "revision" else followed).add(value)
    heads = known - followed
    return known, heads.pop() if len(heads) == 1 else None


# Servers and databases


def _within(seconds: float, check: Callable[[], None], uri: str) -> None:
    """Run `check`, but no longer than `seconds`: name lookups have no time limit of their own."""
    raised: list[InputError] = []

    def call() -> None:
        try:
            check()
        except InputError as error:
            raised.append(error)

    thread = threading.Thread(target=call, name="tracking-check", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise InputError(_unreachable(uri, f"no answer within {seconds:g} seconds"))
    if raised:
        raise raised[0]


def _unreachable(uri: str, reason: str) -> str:
    return (
        f"tracking URI {redact(uri)!r}: the store cannot be reached ({reason}); "
        "start it, correct the address, or log to a file with sqlite:///mlflow.db."
    )


def _check_driver(uri: str, scheme: str) -> None:
    dialect = scheme.partition("+")[0]
    if "+" in scheme and scheme not in _DRIVERS:
        raise InputError(
            f"tracking URI {redact(uri)!r}: unknown database driver {scheme!r}; {suggest(scheme, _DRIVERS)}"
        )
    drivers = [
        module
        for name, module in _DRIVERS.items()
        if name == scheme or scheme == dialect == name.split("+")[0]
    ]
    if not any(importlib.util.find_spec(module) for module in drivers):
        raise InputError(
            f"tracking URI {redact(uri)!r}: logging to {dialect} needs a Python package that is missing "
            f"({' or '.join(drivers)}); install it, or give the URL of an MLflow server on that database."
        )


def _check_port(uri: str, default_port: int) -> None:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port or default_port
    except ValueError as error:
        raise InputError(
            f"tracking URI {redact(uri)!r}: not a valid address ({error}); correct it."
        ) from error
    if not host:
        return  # a local socket, whose path only the database's driver knows
    try:
        socket.create_connection((host, port), timeout=PATIENCE).close()
    except OSError as error:
        raise InputError(_unreachable(uri, f"{host} port {port}: {error.strerror or error}")) from error


def _check_server(uri: str) -> None:
    """Ask for the default experiment: only an MLflow server that lets us in answers that in JSON."""
    try:
        request = urllib.request.Request(
            f"{_public(uri).rstrip('/')}/api/2.0/mlflow/experiments/get?experiment_id=0", headers=_login(uri)
        )
        with urllib.request.urlopen(request, timeout=PATIENCE, context=_tls(uri)) as answer:
            status, body = answer.status, answer.read(1_000_000)
    except urllib.error.HTTPError as error:
        status, body = error.code, b""
        with suppress(OSError):
            body = error.read(1_000_000)
    except urllib.error.URLError as error:
        raise InputError(_unreachable(uri, str(error.reason))) from error
    except OSError as error:
        raise InputError(_unreachable(uri, error.strerror or str(error))) from error
    except ValueError as error:  # urllib.parse and http.client both say so of a malformed URL
        raise InputError(f"tracking URI {redact(uri)!r}: not a valid URL ({error}); correct it.") from error
    if status in (401, 403):
        raise InputError(
            f"tracking URI {redact(uri)!r}: the server refuses the login (HTTP {status}); set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )
    if not _is_mlflow(body):
        raise InputError(
            f"tracking URI {redact(uri)!r}: what answers there (HTTP {status}) is not an MLflow server; "
            "correct the address, its port and path."
        )


def _is_mlflow(body: bytes) -> bool:
    try:
        answer: Any = json.loads(body)
    except ValueError:
        return False
    return isinstance(answer, dict) and ("experiment" in answer or "error_code" in answer)


def _login(uri: str) -> dict[str, str]:
    """The Authorization header MLflow itself would send, from the URI or its environment variables."""
    parts = urlsplit(uri)
    user = os.environ.get("MLFLOW_TRACKING_USERNAME") or unquote(parts.username or "")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or unquote(parts.password or "")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if user:
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _tls(uri: str) -> ssl.SSLContext | None:
    if not uri.lower().startswith("https:"):
        return None
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        trusting = ssl.create_default_context()  # the user's explicit wish, which MLflow follows as well
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        return trusting
    bundle = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or os.environ.get("REQUESTS_CA_BUNDLE")
    return ssl.create_default_context(cafile=bundle)
