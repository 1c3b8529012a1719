"""What `mlflow models serve` loads a package by (docs/serving.md): MLflow calls `_load_pyfunc` with its folder.

No pickle: the model's card names this module, and its data are safetensors, pictures and JSON.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from pipeline.errors import UserError
from pipeline.serving.body import BoundedBodies
from pipeline.serving.requests import MOST_BODY, MOST_WAITING
from pipeline.serving.service import Busy, Service

SERVED = "__pyfunc_model_path__"  # in the environment of MLflow's scoring server

log = logging.getLogger(__name__)


class Refusal(MlflowException):  # type: ignore[misc]
    """An answer of one sentence. MLflow's server puts the whole request into an error's message, pictures and all, and
    this one leaves it out again."""

    def __init__(self, sentence: str, code: int) -> None:
        super().__init__(sentence, code)
        self._sentence = sentence

    def serialize_as_json(self) -> str:
        """What the server sends."""
        return json.dumps({"error_code": self.error_code, "message": self._sentence})


class Model:
    """A service as MLflow asks it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer to one request: an object, or a data frame of one row.

        Raises:
            Refusal: with the HTTP status 400 for a wrong request, 503 where too many wait, 500 for all else.
        """
        try:
            return self._service.answer(_plain(model_input))
        except UserError as error:
            raise Refusal(str(error.problems[0]), INVALID_PARAMETER_VALUE) from None
        except Busy:
            raise Refusal("Too many requests are waiting already. Ask again later.", TEMPORARILY_UNAVAILABLE) from None
        except Exception:
            log.exception("A request failed")
            raise Refusal("The server failed at this request; its log says why.", INTERNAL_ERROR) from None


def _load_pyfunc(path: str) -> Model:
    if SERVED in os.environ:
        _bound_requests()
    return Model(Service(Path(path)))


def _bound_requests() -> None:
    """MLflow's server reads bodies of any length. The application that serves this model is made after this, in this
    process, which serves nothing else."""
    from fastapi import FastAPI

    plain = FastAPI.build_middleware_stack

    def bounded(application: FastAPI) -> Any:
        return BoundedBodies(plain(application), MOST_BODY, MOST_WAITING)

    FastAPI.build_middleware_stack = bounded  # type: ignore[method-assign,assignment]


def _plain(given: Any) -> Any:
    """What was sent, without the arrays and tables that MLflow makes of it."""
    if hasattr(given, "to_dict"):  # a data frame
        given = given.to_dict("records")
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(given, dict):
        return {str(key): _listed(value) for key, value in given.items()}
    return _listed(given)


def _listed(value: Any) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_listed(one) for one in value] if isinstance(value, list | tuple) else value
