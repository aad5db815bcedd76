"""The HTTP API and its page: `uvicorn wan_orchestration.api:app`.

The API stores nothing itself. A job's state is its Dagster run and its files; a submission is a run in Dagster's queue.
"""

from wan_orchestration.api.app import create_app

__all__ = ["app"]

app = create_app()
