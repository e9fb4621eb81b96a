"""What the OpenAPI documents allow and what they do not, tried at random: no server error, whatever comes."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.faults import pace
from tests.faults.faces import Face, three_faces
from tests.support import Vhost

schemathesis = pytest.importorskip("schemathesis")

EXAMPLES = pace.times(40, 16)
"""For each operation, and as many that break its schema."""


@pytest.mark.faults
@pytest.mark.timeout(900)
# The services share this process and draw their jitter while hypothesis watches the random source.
@pytest.mark.filterwarnings("ignore:Do not use the `random` module")
async def test_no_answer_is_a_server_error(vhost: Vhost, tmp_path: Path) -> None:
    """Every operation of the three faces, with requests that fit its schema and requests that do not."""
    async with three_faces(vhost, tmp_path) as faces:
        for face in faces:
            document = face.app.openapi()
            complaints, tried = await asyncio.to_thread(_try_everything, face, document)
            assert complaints == [], face.name
            operations = sum(len(path) for path in document["paths"].values())
            assert tried > EXAMPLES / 2 * operations, (
                f"only {tried} requests for {operations} operations of the {face.name}"
            )
            async with face.client() as client:
                assert (await client.get("/readyz")).status_code == 200


def _try_everything(face: Face, document: dict[str, Any]) -> tuple[list[str], int]:
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=face.url)
    found: list[str] = []
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        if operation.path in ("/v1/stream", "/metrics"):
            continue  # the first never ends; test_security.py asks for it
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            try:
                cases = operation.as_strategy(generation_mode=mode)
            except Exception as error:
                if "negate" in str(error).lower() or "unsatisfiable" in type(error).__name__.lower():
                    continue
                raise
            complaints, count = _try(face, cases)
            found += complaints
            tried += count
    return found, tried


def _try(face: Face, cases: Any) -> tuple[list[str], int]:
    found: list[str] = []
    tried = 0

    @settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=cases)
    def one(case: Any) -> None:
        nonlocal tried
        tried += 1
        answer = case.call(headers={"Authorization": f"Bearer {face.key}"}, timeout=30)
        # 503: the gateway asks a service that does not run here.
        if answer.status_code >= 500 and answer.status_code != 503:
            found.append(f"{case.method} {case.formatted_path} {case.query} {case.body!r}: {answer.text[:500]}"[:3000])

    try:
        one()
    except Exception as error:
        if type(error).__name__ not in ("Unsatisfiable", "UnsatisfiableParameter", "InvalidArgument", "SkipTest"):
            raise
    return found, tried
