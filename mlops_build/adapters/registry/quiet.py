"""Settings that mlflow reads when it is imported."""

import os

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


def quiet_mlflow() -> None:
    """Call this before `import mlflow`: no telemetry, few log lines, and an error within seconds. What the user has set wins.

    mlflow reads nothing but the environment, so this process and its children get these variables.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
