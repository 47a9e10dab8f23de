# SPDX-License-Identifier: GPL-3.0-or-later
"""What requests of the index are told when they fail: a status, and one line of why."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from flask import Response, jsonify, request
from werkzeug.exceptions import HTTPException

from narswarm.errors import BusyError, InvalidInputError, MismatchError, NarswarmError
from narswarm.gcrypt import GcryptMissingError
from narswarm.httpsig import SignatureError
from tracker.database import DatabaseError
from tracker.holdings import (
    HoldingsFullError,
    StaleHoldingsError,
    TooManyItemsError,
    TooSoonError,
)
from tracker.index import IndexFullError
from tracker.publication import RefusedError

BUSY_SECONDS = 5
"""When to come back to a tracker that has too much to do."""

_STATUS: dict[type[NarswarmError], HTTPStatus] = {
    InvalidInputError: HTTPStatus.BAD_REQUEST,
    SignatureError: HTTPStatus.UNAUTHORIZED,
    RefusedError: HTTPStatus.FORBIDDEN,
    MismatchError: HTTPStatus.CONFLICT,
    StaleHoldingsError: HTTPStatus.CONFLICT,
    TooManyItemsError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    TooSoonError: HTTPStatus.TOO_MANY_REQUESTS,
    GcryptMissingError: HTTPStatus.SERVICE_UNAVAILABLE,
    BusyError: HTTPStatus.SERVICE_UNAVAILABLE,
    IndexFullError: HTTPStatus.INSUFFICIENT_STORAGE,
    DatabaseError: HTTPStatus.SERVICE_UNAVAILABLE,
    HoldingsFullError: HTTPStatus.INSUFFICIENT_STORAGE,
}


def error_response(status: HTTPStatus, text: str, **more: Any) -> Response:
    """An error for programs under /v1, for people elsewhere.

    Args:
        status: the status.
        text: what is wrong.
        more: what programs are told besides.
    """
    response = (
        jsonify(error=text, **more)
        if request.path.startswith("/v1/")
        else Response(f"{text}\n", content_type="text/plain;charset=utf-8")
    )
    response.status_code = status
    if status is HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = "Signature"
    return response


def http_error(error: HTTPException) -> Response:
    """Errors of the protocol: no such path, no such method, too large."""
    status = HTTPStatus(error.code or HTTPStatus.INTERNAL_SERVER_ERROR)
    response = error_response(status, f"{request.path}: {error.name.lower()}")
    for name, value in error.get_headers():
        if name == "Allow":
            response.headers[name] = value
    return response


def narswarm_error(error: NarswarmError) -> Response:
    """Errors of what was asked for or sent."""
    statuses = (status for kind, status in _STATUS.items() if isinstance(error, kind))
    more = {"generation": error.generation} if isinstance(error, StaleHoldingsError) else {}
    response = error_response(next(statuses, HTTPStatus.INTERNAL_SERVER_ERROR), str(error), **more)
    if isinstance(error, TooSoonError):
        response.headers["Retry-After"] = str(error.retry_after)
    elif isinstance(error, BusyError):
        response.headers["Retry-After"] = str(BUSY_SECONDS)
    return response
