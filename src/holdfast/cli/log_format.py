"""How the server's log lines look: text for people, or one JSON object a line for programs.

A log call about a shortage or an error carries `extra=errors.log_fields(...)`. In text the message says the same in
words; in JSON the fields stand beside it:

    ts        when, ISO 8601 in UTC, to the millisecond
    level     debug, info, warning, error or critical
    logger    which part says it
    message   the line that the text format prints
    resource  what is exhausted or broken ("pool space", "quota", "disk", ...)
    action    what to do about it
    volume    whose data it met; several are separated by a comma and a blank
    errno     the name of the error
    exception the traceback, where there is one
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

TEXT_FORMAT = "holdfast: %(levelname)s: %(message)s"
LOG_FORMATS = ("text", "json")

_EXTRA_FIELDS = ("resource", "action", "volume", "errno")


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in _EXTRA_FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(level: str, log_format: str) -> None:
    """Let everything of `level` and above go to standard error in this format."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else logging.Formatter(TEXT_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler])
