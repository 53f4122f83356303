"""Structured logs: one JSON object a line, which `worldwarp logs` and other programs can search.

    {"time": "2025-01-31T12:00:00.123+0100", "level": "ERROR", "process": "worker 0", "message": "...",
     "job_id": "...", "log_id": "..."}

`log_id` is what a client shows when something unexpected happened; the traceback is here and never leaves the server.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 10 * 2**20
KEPT_FILES = 3
FIELDS = ("job_id", "log_id", "client")
"""What a record may carry beside its message (`extra=`)."""


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        at = time.localtime(record.created)
        line: dict[str, Any] = {
            "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', at)}.{int(record.msecs):03d}{time.strftime('%z', at)}",
            "level": record.levelname,
            "process": self._process,
            "message": message,
        }
        line |= {name: value for name in FIELDS if (value := getattr(record, name, ""))}
        return json.dumps(line, ensure_ascii=False)


def add_log_file(path: Path, process: str) -> logging.Handler:
    """Has everything that is logged from here on written to `path` too, which is begun anew when it is large."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = RotatingFileHandler(path, maxBytes=MAX_FILE_BYTES, backupCount=KEPT_FILES, encoding="utf-8")
    handler.setFormatter(JsonFormatter(process))
    logging.getLogger().addHandler(handler)
    return handler


def read_logs(folder: Path, *, job_id: str = "", log_id: str = "") -> Iterator[dict[str, Any]]:
    """The records in every log of `folder`, oldest first; those of one job or of one id where that is asked for.

    A job or an id may be named by its beginning. A line that cannot be read is passed over: a server that was killed
    leaves half of one.
    """
    records = []
    for path in folder.glob("*.log*"):
        for line in path.read_text("utf-8", "replace").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and {"time", "level", "message"} <= set(record):
                records.append(record)
    for record in sorted(records, key=lambda record: str(record["time"])):
        if str(record.get("job_id", "")).startswith(job_id) and str(record.get("log_id", "")).startswith(log_id):
            yield record
