"""The service against 2,000 requests made from its own schema, valid and not: never a 5xx."""

import collections
import contextlib
import os

import galleries
import pytest

pytest.importorskip("fastapi", reason="the service needs the extra serve")
schemathesis = pytest.importorskip("schemathesis", reason="requests are made by schemathesis")

import hypothesis  # noqa: E402
from hypothesis import HealthCheck  # noqa: E402
from hypothesis.errors import Unsatisfiable  # noqa: E402

from xmodal_jax.serve import guard  # noqa: E402
from xmodal_jax.serve.app import make_app  # noqa: E402
from xmodal_jax.serve.batcher import Batcher  # noqa: E402
from xmodal_jax.serve.live import Live  # noqa: E402

REQUESTS = int(os.environ.get("XMODAL_FUZZ", "2000"))
seen = collections.Counter()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    live, batcher, metrics = Live(galleries.gallery(tmp_path_factory.mktemp("fuzz"))), Batcher(), guard.Metrics()
    inner = make_app(live, batcher, metrics)
    guarded = guard.Guard(inner, metrics=metrics, loopback=False, log=None)
    yield guarded
    batcher.close()
    live.close()


@pytest.mark.slow
def test_no_request_is_a_server_error(app):
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [own.ok() for own in schema.get_all_operations()]
    share = -(-REQUESTS // 8)  # four of the operations take a body, each in two modes; the others have few forms
    modes = list(schemathesis.GenerationMode)
    assert len(modes) == 2  # what the schema allows, and what it does not

    for operation in operations:
        for mode in modes:
            strategy = operation.as_strategy(generation_mode=mode)

            @hypothesis.settings(
                max_examples=share,
                deadline=None,
                database=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            )
            @hypothesis.given(case=strategy)
            def ask(case):
                answer = case.call()
                seen[answer.status_code] += 1
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)
                if answer.status_code not in (200, 404, 405):
                    assert answer.json()["detail"]

            with contextlib.suppress(Unsatisfiable):  # a path that takes nothing has nothing wrong
                ask()
    print(dict(seen))
    assert sum(seen.values()) >= REQUESTS
    assert seen[200] >= REQUESTS / 100
    assert seen[422] >= REQUESTS / 40
