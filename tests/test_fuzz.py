"""The service against thousands of requests made from its own schema, valid and not: never a 5xx."""

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
SPOKEN = ("/caption", "/caption/picture", "/paraphrase")


@pytest.fixture(scope="module")
def system(request):
    return request.param


@pytest.fixture(scope="module")
def app(system, tmp_path_factory):
    folder = galleries.gallery(tmp_path_factory.mktemp("fuzz"), system=system)
    live, batcher, metrics = Live(folder), Batcher(), guard.Metrics()
    inner = make_app(live, batcher, metrics)
    guarded = guard.Guard(inner, metrics=metrics, loopback=False, log=None)
    yield guarded
    batcher.close()
    live.close()


@pytest.mark.slow
@pytest.mark.parametrize("system", ["scan.py:t2i_lse", "stt.py:stt"], indirect=True)
def test_no_request_is_a_server_error(app, system):
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert set(SPOKEN) < {result.path for result in operations}
    if system.startswith("stt"):  # what others cannot do; the rest is the same
        operations = [result for result in operations if result.path in SPOKEN]
    share = -(-REQUESTS // 12)  # six of the operations take a body, each in two modes; the others have few forms
    seen = collections.Counter()
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
                valid = mode.is_positive  # noqa: B023  (it is run within the loop)
                if valid and isinstance(case.body, dict) and isinstance(case.body.get("text"), str):
                    case.body["text"] = f"a {case.body['text'][:1900]}"  # a word that is known: others are refused
                answer = case.call()
                seen[answer.status_code] += 1
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)
                if answer.status_code not in (200, 404, 405):
                    assert answer.json()["detail"]

            with contextlib.suppress(Unsatisfiable):  # a path that takes nothing has nothing wrong
                ask()
    print(dict(seen))
    assert sum(seen.values()) >= (REQUESTS if len(operations) > len(SPOKEN) else REQUESTS / 4)
    assert seen[200] >= REQUESTS / 100
    assert seen[422] >= REQUESTS / 40
