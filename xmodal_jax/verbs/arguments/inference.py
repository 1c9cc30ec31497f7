"""Arguments of the verbs that use a trained system."""

import argparse
from pathlib import Path

from xmodal_jax.verbs.arguments import add_trained, verb


def add_decoding(parser: argparse.ArgumentParser) -> None:
    add_trained(parser)
    parser.add_argument("--split", help="all of a split instead")
    parser.add_argument("--longest", type=int, default=20, help="most tokens of a sentence")
    parser.add_argument("--beams", type=int, default=1, help="beam search with so many beams")
    parser.add_argument("--temperature", type=float, help="sample, from a distribution this flat")
    parser.add_argument("--top-p", type=float, help="sample, from the likeliest words of this probability in all")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--json", type=Path, help="write the sentences here")


def add_caption(verbs) -> None:
    parser = verb(
        verbs,
        "caption",
        "verbs.caption:caption",
        "say a sentence for images, with a system that speaks",
        "xmodal caption --workdir runs/stt --image 1001773457_577c3a7d70.jpg",
    )
    parser.add_argument("--image", nargs="+", metavar="ID|FILE", help="images of the data set, or picture files")
    add_decoding(parser)


def add_paraphrase(verbs) -> None:
    parser = verb(
        verbs,
        "paraphrase",
        "verbs.caption:paraphrase",
        "say sentences in other words, with a system that speaks",
        'xmodal paraphrase --workdir runs/stt "two dogs run on a beach"',
    )
    parser.add_argument("text", nargs="*", help="sentences")
    add_decoding(parser)


def add_export(verbs) -> None:
    parser = verb(
        verbs,
        "export",
        "export.run:main",
        "a run as a bundle, for use without the training code",
        "xmodal export --workdir runs/vsepp --out vsepp.bundle",
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--step", type=int, help="a saved step; the best by dev rsum by default")
    parser.add_argument("--data", type=Path, help="the data set, where it has moved since training")
    parser.add_argument("--onnx", action="store_true", help="each function as ONNX too (extra onnx), checked")


def add_convert(verbs) -> None:
    parser = verb(
        verbs,
        "convert",
        "convert.flow:main",
        "a PyTorch checkpoint of the original code as a bundle, without running anything in it",
        "xmodal convert scan model_best.pth.tar --vocab f30k_precomp_vocab.json --out scan.bundle",
    )
    parser.add_argument(
        "system", choices=["vsepp", "scan", "vse_infty", "adapt", "sgraf", "chan"], help="whose code wrote it"
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="model_best.pth.tar or another such file")
    parser.add_argument(
        "--vocab",
        type=Path,
        metavar="V",
        help="its vocabulary: JSON or pickle of the original, or our vocabulary.json; without it the bundle takes "
        "token ids only",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the folder to write")


def add_index(verbs) -> None:
    parser = verb(
        verbs,
        "index",
        "inference.index:main",
        "embed a data set once, as a gallery to search; the same command goes on after an interruption",
        "xmodal index --bundle vsepp.bundle --data data/f8k --out f8k.gallery",
    )
    parser.add_argument("--bundle", type=Path, required=True, help="what `xmodal export` wrote")
    parser.add_argument("--data", type=Path, required=True, help="a prepared data set")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--split", default="test", help="the split to index; test by default")
    parser.add_argument(
        "--coarse",
        type=Path,
        metavar="BUNDLE",
        help="another bundle, of one vector an item, that finds the candidates for a system that scores pairs of "
        "fragments; by default the pooled fragments do",
    )
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="stored type")


def add_pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pictures",
        type=Path,
        metavar="DATA",
        help="the data set's folder, where it has moved since indexing or the gallery comes from somebody else",
    )


def add_search(verbs) -> None:
    parser = verb(
        verbs,
        "search",
        "verbs.search:main",
        "images for a sentence, captions for an image, or images like it",
        'xmodal search f8k.gallery "a dog on the beach" -k 5',
    )
    parser.add_argument("gallery", type=Path, help="what `xmodal index` wrote")
    parser.add_argument("text", nargs="?", help="a sentence")
    parser.add_argument("--image", metavar="FILE|ID", help="an image of the gallery, or a picture")
    parser.add_argument("--similar", action="store_true", help="of --image: find images like it, not captions")
    parser.add_argument("-k", type=int, default=10, help="how many to find, at most 1,000")
    parser.add_argument(
        "--engine", default="exact", metavar="NAME", help="exact (default), faiss or qdrant[:ADDRESS|FOLDER]"
    )
    parser.add_argument(
        "--rerank", metavar="N", help="candidates to score in full, or all; only where scores are no inner products"
    )
    add_pictures(parser)
    parser.add_argument(
        "--measure", action="store_true", help="what re-ranking keeps of scoring everything, and how fast"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def add_serve(verbs) -> None:
    parser = verb(verbs, "serve", "serve.main:main", "a gallery as a web service with a page", "xmodal serve gallery")
    parser.add_argument("gallery", type=Path, help="what `xmodal index` wrote, or a run, whose gallery is made first")
    parser.add_argument("--split", help="of a run: the split to search; test by default, where there is one")
    parser.add_argument("--host", default="127.0.0.1", help="another address needs a token in XMODAL_TOKEN")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--engine", default="exact", help="exact, faiss or qdrant[:LOCATION]")
    parser.add_argument(
        "--rerank",
        type=lambda text: text if text == "all" else int(text),
        metavar="N",
        help="candidates to score in full, or all; only where scores are no inner products",
    )
    add_pictures(parser)
    parser.add_argument("--queue", type=int, default=256, help="requests that may wait; more get 429")
    parser.add_argument("--deadline", type=float, default=10.0, help="seconds that a request may take")
