"""The logs of a server: a line of JSON for each record, found again by job or id."""

from __future__ import annotations

import datetime
import logging
from pathlib import Path

from engine_bridge.keys import ClientKey, ServerKey
from engine_bridge.logs import add_log_file, read_logs


def test_a_record_says_when_by_any_clock_whose_and_what(tmp_path: Path) -> None:
    handler = add_log_file(tmp_path / "server.log", "server")
    log = logging.getLogger("engine_bridge.test")
    before = datetime.datetime.now(datetime.UTC)
    try:
        log.error("two\nlines", extra={"job_id": "ab12", "log_id": "cd34"})
        log.error("another")
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    with (tmp_path / "server.log").open("a", encoding="utf-8") as file:
        file.write('{"time": "half a li')
    (record,) = read_logs(tmp_path, job_id="ab")
    assert (record["process"], record["level"], record["message"]) == ("server", "ERROR", "two\nlines")
    assert [found["log_id"] for found in read_logs(tmp_path, log_id="cd34")] == ["cd34"]
    assert len(list(read_logs(tmp_path))) == 2
    written = datetime.datetime.fromisoformat(record["time"])
    assert abs((written - before).total_seconds()) < 600, "with its offset from UTC"


def test_a_key_never_shows_its_secret() -> None:
    for key in (ServerKey("public half", "secret half"), ClientKey("anna", "public half", "secret half", "theirs")):
        assert "public half" in repr(key)
        assert "secret half" not in repr(key)
