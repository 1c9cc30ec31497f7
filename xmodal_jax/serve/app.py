"""The JSON API and the page. All device work goes through one :class:`Batcher`; each request keeps to one gallery."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    field_validator,
)

from xmodal_jax import __version__
from xmodal_jax.errors import CheckpointError, DataError, UsageError, XmodalError
from xmodal_jax.serve.batcher import Batcher, Full
from xmodal_jax.serve.guard import Metrics
from xmodal_jax.serve.live import Live, State
from xmodal_jax.serve.words import docs_of, fault_of, results_of

PAGE = Path(__file__).parent / "page"
ASSETS = {
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/look.js": ("look.js", "text/javascript; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
ASKED = ("/search", "/search/picture", "/attend", "/caption", "/caption/picture", "/paraphrase")
ROUTES = frozenset((*ASKED, "/examples", "/healthz", "/readyz", "/", "/docs", "/openapi.json", "/metrics", *ASSETS))
READ = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff")
PICTURES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}
DECODERS = 2  # pictures that are decoded at a time: one of 20 million pixels takes some 100 MB
TEXT, MOST = 2000, 1000  # characters of a query, answers to it
RETRY = {"Retry-After": "1"}

Sentence = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=TEXT)]
Number = Annotated[int, Field(ge=1, le=MOST, strict=True)]
Row = Annotated[int, Field(ge=0, lt=1 << 31, strict=True)]
Found = Literal["captions", "images"]


class Asked(BaseModel):
    """A body that knows its keys."""

    model_config = ConfigDict(extra="forbid")

    @field_validator("text", check_fields=False)
    @classmethod
    def whole(cls, text: str) -> str:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError("half a character (a lone surrogate)")
        return text


class Text(Asked):
    """A sentence that ranks the images."""

    text: Sentence
    k: Number = 20


class Item(Asked):
    """An image of the gallery that ranks the captions, or the other images."""

    item: Row
    k: Number = 20
    find: Found = "captions"


Question = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Item, Tag("item")],
    Discriminator(lambda body: "item" if isinstance(body, dict) and "item" in body else "text"),
]


class Pair(Asked):
    """A sentence and an image of the gallery."""

    item: Row
    text: Sentence


class Image(Asked):
    """An image of the gallery."""

    item: Row


class Said(Asked):
    """A sentence to put in other words."""

    text: Sentence


class Fault(BaseModel):
    """What was wrong, in one sentence."""

    detail: str


FAULTS: dict[int | str, dict[str, Any]] = {
    400: {"model": Fault, "description": "The body is no JSON."},
    401: {"model": Fault, "description": "A token is needed."},
    404: {"model": Fault, "description": "There is no such item, or the system cannot do this."},
    413: {"model": Fault, "description": "The body is too large."},
    421: {"model": Fault, "description": "The host name is not that of this machine."},
    422: {"model": Fault, "description": "A value is missing, wrong or out of its limits."},
    429: {"model": Fault, "description": "Too many requests wait; try again after Retry-After seconds."},
    503: {"model": Fault, "description": "The gallery cannot be read at the moment."},
}

A_PICTURE = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in READ},
    }
}


class Missing(Exception):
    """There is no such thing here; its words go to the client."""


def fault(status: int, detail: str, **headers: str) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers or None)


def make_app(live: Live, batcher: Batcher, metrics: Metrics, *, deadline: float = 10.0) -> FastAPI:
    """The application; ``deadline`` is how many seconds a request may take, its wait in the queue included."""
    app = FastAPI(
        title="xmodal_jax", version=__version__, description="Image-text search.", docs_url=None, redoc_url=None
    )

    decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="pixels")

    async def run(state: State, kind: str, work: Callable[[list[Any]], list[Any]], item: Any) -> Any:
        return await batcher.ask((id(state), kind), work, item, deadline)

    def row_of(state: State, row: int) -> int:
        if not 0 <= row < state.count:
            raise Missing(f"No item {row}; there are {state.count:,}, counted from 0.")
        return row

    async def pixels_of(state: State, body: bytes) -> Any:
        if not state.pixels:
            raise Missing("This gallery's system reads ready-made features, so it cannot look at a new picture.")
        if not body:
            raise DataError("The body holds no picture.")
        return await asyncio.get_running_loop().run_in_executor(decoders, state.read, body)

    def check_likeness(state: State) -> None:
        if not state.searcher.likens:
            raise Missing(f'The system "{state.system}" scores images with sentences, not with images; find captions.')

    def check_captions(state: State) -> None:
        if not state.speaks_of_images:
            raise Missing(f'The system "{state.system}" has no caption decoder; /search ranks captions that exist.')

    @app.exception_handler(Full)
    async def full(_: Request, __: Exception) -> Response:
        return JSONResponse({"detail": "Too many requests wait; try again in a second."}, 429, RETRY)

    @app.exception_handler(Missing)
    async def missing(_: Request, error: Exception) -> Response:
        return fault(404, str(error))

    @app.exception_handler(XmodalError)
    async def refused(_: Request, error: Exception) -> Response:
        if isinstance(error, CheckpointError):  # of the gallery, not of the question; it names files of this machine
            print(f"serve: {error}", file=sys.stderr, flush=True)
            return fault(503, "The gallery cannot be read at the moment; try again later.")
        return fault(422, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        return fault(400 if first["type"] == "json_invalid" else 422, fault_of(first))

    @app.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> Response:
        return fault(500, "Something is wrong with this service; its log says what.")

    @app.post("/search", responses=FAULTS, summary="Rank images by a sentence, or captions or images by an image")
    async def search(asked: Question) -> dict[str, Any]:
        state = live.state
        if isinstance(asked, Text):
            state.searcher.check_known(asked.text)  # before it is put together with the questions of others
            return await run(state, "text", state.by_text, (asked.text, asked.k))
        item = row_of(state, asked.item), asked.k
        if asked.find == "captions":
            return await run(state, "item", state.by_item, item)
        check_likeness(state)
        return await run(state, "likeness", state.by_likeness, item)

    @app.post(
        "/search/picture",
        responses=FAULTS,
        summary="Rank captions or images by a picture",
        openapi_extra=A_PICTURE,
    )
    async def search_picture(
        request: Request,
        k: Annotated[int, Query(ge=1, le=MOST, description="How many.")] = 20,
        find: Annotated[Found, Query(description="What is ranked.")] = "captions",
    ) -> dict[str, Any]:
        state, body = live.state, await request.body()
        if find == "captions":
            return await run(state, "picture", state.by_picture, (await pixels_of(state, body), k))
        check_likeness(state)
        return await run(state, "likeness", state.by_likeness, (await pixels_of(state, body), k))

    @app.post("/attend", responses=FAULTS, summary="Where each word of a sentence, or each step, looks in an image")
    async def attend(asked: Pair) -> dict[str, Any]:
        state = live.state
        if state.blind:
            raise Missing(f'What the system "{state.system}" looks at lies in the data set, which is not here.')
        if not state.attends:
            raise Missing(f'The system "{state.system}" has no attention between words and regions to show.')
        return await run(state, "attend", state.attend, (row_of(state, asked.item), asked.text))

    @app.post("/caption", responses=FAULTS, summary="What the system says of an image of the gallery")
    async def caption(asked: Image) -> dict[str, Any]:
        state = live.state
        row = row_of(state, asked.item)
        check_captions(state)
        said = state.describe(row)["said"]
        if said is None:
            raise Missing(
                "This gallery was made before galleries kept sentences; index the data again, into another folder."
            )
        return {"caption": said}

    @app.post(
        "/caption/picture", responses=FAULTS, summary="What the system says of a picture", openapi_extra=A_PICTURE
    )
    async def caption_picture(request: Request) -> dict[str, Any]:
        state, body = live.state, await request.body()
        check_captions(state)
        return await run(state, "caption", state.caption, await pixels_of(state, body))

    @app.post("/paraphrase", responses=FAULTS, summary="A sentence in the system's words")
    async def paraphrase(asked: Said) -> dict[str, Any]:
        state = live.state
        if not state.speaks_of_sentences:
            raise Missing(f'The system "{state.system}" has no decoder that puts sentences in other words.')
        return await run(state, "paraphrase", state.paraphrase, asked.text)

    @app.get("/examples", summary="Sentences to ask this gallery, and some of its images")
    async def examples() -> dict[str, Any]:
        return live.state.examples()

    @app.get("/items/{row}", responses=FAULTS, summary="What is known of an image")
    async def item(row: int) -> dict[str, Any]:
        state = live.state
        return state.describe(row_of(state, row))

    @app.get("/items/{row}/picture", responses=FAULTS, response_class=FileResponse, summary="The pixels of an image")
    async def picture(row: int) -> Response:
        state = live.state
        path = state.picture(row_of(state, row))
        if path is None or not path.is_file():
            raise Missing(f"Item {row} has no picture here.")
        headers = {"cache-control": "private, max-age=300"}
        kind = PICTURES.get(path.suffix.lower())
        if kind is None:  # a TIFF, say, which browsers do not show
            try:
                body = await asyncio.get_running_loop().run_in_executor(decoders, state.as_png, path)
            except DataError:  # its words would name a file of this machine
                raise Missing(f"Item {row} has no picture here.") from None
            return Response(body, media_type="image/png", headers=headers)
        return FileResponse(path, media_type=kind, headers=headers)

    @app.get("/healthz", summary="Whether the service is up, and what it serves")
    async def healthz() -> dict[str, Any]:
        return {"status": "ok", **live.state.facts()}

    @app.get("/readyz", responses={503: FAULTS[503]}, summary="Whether a question would be taken now")
    async def readyz() -> Response:
        return JSONResponse({"status": "ready"}) if batcher.ready else fault(503, "The queue takes nothing now.")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_of(app.openapi()))

    @app.get("/metrics", response_class=PlainTextResponse, summary="Counters in the form of Prometheus")
    async def metrics_text() -> str:
        sizes = batcher.batches
        gauges = {
            "queue_length": float(len(batcher)),
            "batches": float(sum(sizes.values())),
            "batched_requests": float(sum(size * count for size, count in sizes.items())),
            "gallery_images": float(live.state.count),
            "gallery_swaps": float(live.swaps),
        }
        return metrics.text(gauges)

    first = (PAGE / "index.html").read_bytes()

    @app.get("/", include_in_schema=False)
    async def home(text: str | None = None) -> Response:
        """The page; with a sentence its answer, for browsers without JavaScript."""
        if text is None:
            return Response(first, media_type="text/html; charset=utf-8")
        state = live.state
        try:
            asked = Text(text=text)
            state.searcher.check_known(asked.text)
            return HTMLResponse(results_of(text, await run(state, "text", state.by_text, (asked.text, asked.k))))
        except ValidationError as error:
            return HTMLResponse(results_of("", None, fault_of(error.errors()[0])), 422)
        except UsageError as error:
            return HTMLResponse(results_of(text, None, str(error)), 422)

    for route, (name, kind) in ASSETS.items():
        app.get(route, include_in_schema=False)(asset(PAGE / name, kind))
    return app


def asset(path: Path, kind: str) -> Callable[[], Any]:
    content = path.read_bytes()

    async def send() -> Response:
        return Response(content, media_type=kind)

    return send
