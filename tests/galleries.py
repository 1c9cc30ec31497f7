"""A small gallery with pictures, boxes and hostile captions, of a SCAN or another system with random parameters."""

from xmodal_jax import config as configs
from xmodal_jax.data import scenes, writer
from xmodal_jax.data.records import open_dataset
from xmodal_jax.export import run as export
from xmodal_jax.inference import index, load
from xmodal_jax.text.vocabulary import Vocabulary
from xmodal_jax.training.model import example_batch, facts_of, inputs_of, make_model
from xmodal_jax.training.step import initialise

HOSTILE = [
    "<script>window.hurt = 1</script>",
    '<img src=x onerror="window.hurt = 1">',
    '"><svg onload=window.hurt=1>',
    "javascript:window.hurt=1",
    "<iframe srcdoc='<script>parent.hurt=1</script>'></iframe>",
    "{{constructor.constructor('window.hurt=1')()}}",
    "<a href='javascript:window.hurt=1'>click</a>",
    "<style>body{display:none}</style>",
    "&lt;script&gt;window.hurt=1&lt;/script&gt;",
    "</title><script>window.hurt=1</script>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=window.hurt=1>",
    "${window.hurt=1} `${window.hurt=1}`",
]
COUNT = 12


def data(folder, *, count=COUNT, seed=0):
    """A set whose one split "test" has rendered pictures, the hostile captions and one ordinary one each."""
    pictures = folder.with_name(folder.name + ".pictures")
    pictures.mkdir(parents=True)

    def items():
        for row in range(count):
            item, _ = scenes.make_item(seed, row, pictures)
            yield item._replace(captions=[HOSTILE[row % len(HOSTILE)], item.captions[0]])

    writer.write(folder, {"test": items()}, name="hostile", source={"scenes": 1, "images": count, "seed": seed})
    return folder


def bundle(folder, dataset, *, seed=0, system="scan.py:t2i_lse"):
    """A bundle of a system at ``tiny`` that nobody trained."""
    config = configs.load(f"{system},scenes,tiny", [])
    texts = [text for captions in open_dataset(dataset).split("test").captions for text in captions]
    vocabulary = Vocabulary.build(texts, 1)
    facts = facts_of(open_dataset(dataset), inputs_of(config), config, vocabulary)
    model = make_model(config, facts)
    init = initialise(model, example_batch(model.inputs, facts), seed)
    parts = {"config": config, "model": model, "variables": {"params": init.params, **init.model_state}}
    card = export.Card("Random numbers.", "rendered", None, "Not measured.")
    export.write(folder, **parts, vocabulary=vocabulary, facts=facts, card=card, extractor="scenes")
    return folder


def gallery(folder, *, seed=0, count=COUNT, system="scan.py:t2i_lse"):
    """The gallery, below ``folder``."""
    dataset = data(folder / "data", count=count, seed=seed)
    loaded = load(bundle(folder / "bundle", dataset, seed=seed, system=system))
    index.build(folder / "gallery", loaded, index.items_of(dataset, "test", list(loaded.features)))
    return folder / "gallery"
