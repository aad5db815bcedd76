"""Collects what users should know about a task, for its result and its log."""

import logging
from typing import Self

from wan_orchestration.protocol.messages import Reporter


class NoticeCollector(logging.Handler):
    """Collects the package's warnings while a task runs. Each new one is reported once."""

    def __init__(self, job_id: str, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self.job_id, self.reporter = job_id, reporter
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text not in self.texts:
            self.texts.append(text)
            self.reporter.log(f"{self.job_id}: {text}")

    def __enter__(self) -> Self:
        logging.getLogger("wan_orchestration").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("wan_orchestration").removeHandler(self)
