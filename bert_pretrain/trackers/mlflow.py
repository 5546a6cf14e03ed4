"""MLflow: a run in the experiment ``logging.project``, through ``MlflowClient``: no global state of mlflow is touched.

MLflow keeps every value that a metric got at a step. Rows that a rewind computes again are logged again: the later of
two values at a step is that of the run.
"""

import logging
import time
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.environment_variables import (
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT,
)
from mlflow.exceptions import MlflowException

from bert_pretrain.errors import ConfigError, on_one_line
from bert_pretrain.options.stored_options import flat
from bert_pretrain.trackers.tracker import (
    DIVERGED,
    FAILED,
    FINISHED,
    KINDS,
    STOPPED,
    Row,
    RowKey,
    TrackedRun,
    plots_in,
    values_of,
)

_AT_ONCE = 1000  # metrics in one request: mlflow's limit
_PARAMS_AT_ONCE, _LONGEST_PARAM = 100, 6000  # also mlflow's limits
_STATES = {FINISHED: "FINISHED", STOPPED: "KILLED", DIVERGED: "FAILED", FAILED: "FAILED"}
_REFUSED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")
_ID = "bert_pretrain.id"


class MlflowRun:
    """One run in MLflow's store."""

    def __init__(self, run: TrackedRun, client: MlflowClient, experiment: str) -> None:
        found = client.search_runs([experiment], f"tags.`{_ID}` = '{run.id}'", max_results=1)
        opened = found[0] if found else client.create_run(experiment, tags={_ID: run.id}, run_name=run.run_dir.name)
        self._client, self._id = client, opened.info.run_id
        self.where = f"mlflow run {run.run_dir.name} ({self._id}) of experiment {run.project} in {client.tracking_uri}"
        self.held: set[RowKey] = set()
        for kind, name in _one_metric_of_each_kind(opened.data.metrics).items():
            self.held |= {(kind, point.step) for point in client.get_metric_history(self._id, name)}
        client.update_run(self._id, status="RUNNING")
        known = opened.data.params  # which mlflow refuses to change
        config = {name: str(value)[:_LONGEST_PARAM] for name, value in flat(run.config).items()}
        params = [Param(name, value) for name, value in config.items() if name not in known]
        for first in range(0, len(params), _PARAMS_AT_ONCE):
            client.log_batch(self._id, params=params[first : first + _PARAMS_AT_ONCE])
        changed = [RunTag(f"resumed with {n}", v) for n, v in config.items() if known.get(n, v) != v]
        client.log_batch(self._id, tags=[*changed, RunTag("state", "running")])

    def log_row(self, row: Row) -> None:
        """All values, in one request up to 1,000."""
        now, values = int(1000 * time.time()), values_of(row)
        metrics = [Metric(name, value, now, values.step) for name, value in values.scalars.items()]
        for first in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(self._id, metrics=metrics[first : first + _AT_ONCE])

    def forget(self, step: int) -> None:
        """Later values are logged beside those that are there."""
        self.held = {key for key in self.held if key[1] <= step}

    def log_checkpoint(self, path: Path, step: int) -> None:
        """Its path as a tag: that of the newest checkpoint."""
        self._client.set_tag(self._id, "checkpoint", str(path))

    def log_plots(self, folder: Path, step: int) -> None:
        """As artifacts."""
        for path in plots_in(folder):
            self._client.log_artifact(self._id, str(path), "plots")

    def finish(self, state: str) -> None:
        """MLflow has fewer states, so ours is a tag as well."""
        self._client.set_tag(self._id, "state", state)
        self._client.set_terminated(self._id, _STATES[state])


def open_run(run: TrackedRun, step: int) -> MlflowRun:
    """The run of this directory, or a new one."""
    client = _client(run)
    found = client.get_experiment_by_name(run.project)
    kind = {"mlflow.experimentKind": "custom_model_development"}  # its pages are those of training, not of LLMs
    return MlflowRun(run, client, found.experiment_id if found else client.create_experiment(run.project, tags=kind))


def check(run: TrackedRun) -> None:
    """Raise ``ConfigError`` if the store refuses this user, or the address is none; not if it does not answer."""
    try:
        client = _client(run)
        experiment = client.get_experiment_by_name(run.project)
    except MlflowException as error:
        text = on_one_line(error)
        if error.error_code in _REFUSED or " 401" in text or " 403" in text:
            raise ConfigError(
                f"mlflow refuses this user at logging.mlflow_uri={run.mlflow_uri} ({text}); set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            ) from None
        if error.error_code == "INVALID_PARAMETER_VALUE":
            raise ConfigError(f"logging.mlflow_uri is {run.mlflow_uri!r}: {text}") from None
        return
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise ConfigError(
            f"logging.project is {run.project!r}, an experiment that was deleted in mlflow; restore it (mlflow "
            f"experiments restore --experiment-id {experiment.experiment_id}), or give another logging.project"
        )


def _client(run: TrackedRun) -> MlflowClient:
    for setting, value in (
        (MLFLOW_HTTP_REQUEST_MAX_RETRIES, 1),  # by mlflow's own it tries for minutes, in which nothing is said
        (MLFLOW_HTTP_REQUEST_TIMEOUT, 20),  # seconds
        (MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT, True),  # ``where`` is printed
    ):
        if not setting.is_set():
            setting.set(value)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return MlflowClient(run.mlflow_uri)


def _one_metric_of_each_kind(metrics: dict[str, Any]) -> dict[str, str]:
    """By kind of row, the name of a metric that each such row has."""
    found: dict[str, str] = {}
    for name in metrics:
        if kind := KINDS.get(name.partition("/")[0]):
            found.setdefault(kind, name)
    return found
