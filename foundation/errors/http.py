"""Problems as HTTP answers: `application/problem+json`, from the same table as everything else."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse

from foundation.errors.problem import Problem


class ProblemResponse(JSONResponse):
    media_type = "application/problem+json"


def respond(_: Request, problem: Exception) -> ProblemResponse:
    """Render a problem; registered as Starlette's handler for `Problem`."""
    if not isinstance(problem, Problem):
        raise problem
    status = problem.meaning.http
    body = {
        "type": f"urn:tieline:error:{problem.code.name.lower()}",
        "title": problem.code.name,
        "code": int(problem.code),
        "status": status,
        "detail": problem.text,
    }
    wait = problem.meaning.retry_after
    return ProblemResponse(body, status_code=status, headers={"Retry-After": str(wait)} if wait else None)
