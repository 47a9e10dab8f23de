# SPDX-License-Identifier: GPL-3.0-or-later
"""What requests are told when they fail."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from flask import Flask
from werkzeug.exceptions import MethodNotAllowed, NotFound

from narswarm.errors import BusyError, InvalidInputError, MismatchError, NarswarmError
from narswarm.gcrypt import GcryptMissingError
from narswarm.httpsig import SignatureError
from tracker.failures import error_response, http_error, narswarm_error
from tracker.holdings import HoldingsFullError, StaleHoldingsError, TooManyItemsError, TooSoonError
from tracker.index import IndexFullError
from tracker.publication import RefusedError

_APP = Flask("test")


@pytest.mark.parametrize(
    ("error", "status", "more", "headers"),
    [
        (InvalidInputError("a", "b"), 400, {}, {}),
        (SignatureError("a", "b"), 401, {}, {"WWW-Authenticate": "Signature"}),
        (RefusedError("a", "b"), 403, {}, {}),
        (MismatchError("a", "b"), 409, {}, {}),
        (StaleHoldingsError(7), 409, {"generation": 7}, {}),
        (TooManyItemsError("a", "b"), 413, {}, {}),
        (TooSoonError(9), 429, {}, {"Retry-After": "9"}),
        (GcryptMissingError(), 503, {}, {}),
        (BusyError("a", "b"), 503, {}, {"Retry-After": "5"}),
        (IndexFullError("a", "b"), 507, {}, {}),
        (HoldingsFullError("a", "b"), 507, {}, {}),
        (NarswarmError("a", "b"), 500, {}, {}),
    ],
)
def test_statuses(
    error: NarswarmError, status: int, more: dict[str, int], headers: dict[str, str]
) -> None:
    """Each error has its status, its one line, and what is needed to go on."""
    with _APP.test_request_context("/v1/x"):
        response = narswarm_error(error)
    assert (response.status_code, response.json) == (status, {"error": str(error), **more})
    for name in ("WWW-Authenticate", "Retry-After"):
        assert response.headers.get(name) == headers.get(name)


def test_for_people() -> None:
    """Outside of /v1 errors are text."""
    with _APP.test_request_context("/metrics"):
        response = error_response(HTTPStatus.FORBIDDEN, "x: is not for you")
    assert (response.status_code, response.data) == (403, b"x: is not for you\n")
    assert response.content_type == "text/plain;charset=utf-8"


def test_errors_of_the_protocol() -> None:
    """They name the path; a wrong method is told which are right."""
    with _APP.test_request_context("/v1/x"):
        response = http_error(NotFound())
        assert (response.status_code, response.json) == (404, {"error": "/v1/x: not found"})
        response = http_error(MethodNotAllowed(["GET"]))
    assert (response.status_code, response.headers["Allow"]) == (405, "GET")
