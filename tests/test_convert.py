"""Checkpoints of the original code: their scores to 1e-5, nothing left over, a sentence for what is not read."""

import json
import re
from typing import Any

import jax
import numpy as np
import pytest
from conftest import GOLDEN
from torch_files import Tensors, addict, call, instance, run, storage, stream, tensor, zipped

import xmodal_jax
from xmodal_jax import cli
from xmodal_jax.convert import flow, systems, words
from xmodal_jax.errors import CheckpointError
from xmodal_jax.text.vocabulary import SPECIAL, Vocabulary
from xmodal_jax.training.checkpoint import flat
from xmodal_jax.types import Feature, Images, Texts

CASES = {  # name -> system, file of golden arrays, prefix in it
    "vsepp": ("vsepp", "vsepp_model_cosine", ""),
    "order": ("vsepp", "vsepp_model_order", ""),
    "scan t2i": ("scan", "scan_model_t2i", ""),
    "scan i2t": ("scan", "scan_model_i2t", ""),
    "vse_infty": ("vse_infty", "vse_infty_model", ""),
    "adapt t2i": ("adapt", "adapt", "model_t2i/"),
    "adapt i2t": ("adapt", "adapt", "model_i2t/"),
    "sgr": ("sgraf", "sgraf", "SGR/"),
    "saf": ("sgraf", "sgraf", "SAF/"),
    "chan": ("chan", "chan_model", ""),
}
OURS = [*SPECIAL, *(f"word{k}" for k in range(56))]


def golden(case):
    """The arrays of a case by their names without prefix, and the options of its run."""
    _, file, prefix = CASES[case]
    arrays = np.load(GOLDEN / f"{file}.npz")
    options = json.loads(str(arrays["meta"]))["options"]
    if file == "adapt":
        options = options["models"][prefix.strip("/")]
    if file == "sgraf":  # the encoders are shared, the rest is of one variant
        found = {key: arrays[key] for key in arrays.files if key.startswith(("in/", "out/", "w/"))}
        found |= {key.removeprefix(prefix): arrays[key] for key in arrays.files if key.startswith(f"{prefix}out/")}
        rest = {key: arrays[key] for key in arrays.files if key.startswith(f"{prefix}w/")}
        return found | {f"w/sim/{key.removeprefix(f'{prefix}w/')}": x for key, x in rest.items()}, options
    return {key.removeprefix(prefix): arrays[key] for key in arrays.files if key.startswith(prefix)}, options


def options_of(case, options) -> Any:
    """What the original's trainer would have saved as options."""
    system = CASES[case][0]
    if system == "vse_infty":
        sizes = {"embed_size": 24, "img_dim": 40, "vocab_size": 60, "word_dim": 20}
        return {**options, **sizes, "precomp_enc_type": "basic", "no_txtnorm": False, "data_name": "f30k_precomp"}
    if system == "sgraf":
        sizes = {"embed_size": 24, "img_dim": 20, "vocab_size": 60, "word_dim": 20, "sim_dim": 16, "sgr_step": 3}
        flags = {"bi_gru": True, "no_imgnorm": False, "max_violation": True, "module_name": case.upper()}
        return {"margin": 0.2, "data_name": "f30k_precomp", "num_layers": 1, **sizes, **flags}
    if system == "chan":
        sizes = {"embed_size": 24, "img_dim": 40, "vocab_size": 60, "word_dim": 20, "num_layers": 1}
        kinds = {"precomp_enc_type": "selfattention", "text_enc_type": "bigru", "coding_type": "VHACoding"}
        words = {"wemb_type": "glove", "word2idx": {"<pad>": 0, "<start>": 1}}
        return {"margin": 0.05, "data_name": "f30k", "pooling_type": "LSEPooling", "belta": 0.1} | sizes | kinds | words
    if system == "adapt":
        score = {"latent_size": 24, "gamma": options["gamma"], "train_gamma": False, "device": "cuda"}
        text = {"embed_dim": 10, "use_bi_gru": True, "add_rand_embed": True}
        return {
            "dataset": {"text_repr": "word", "train": {"batch_size": 105, "workers": 1}},
            "criterion": {"margin": 0.2, "max_violation": False, "beta": 0.991},
            "model": {
                "latent_size": 24,
                "txt_enc": {"name": "gru_glove", "params": text, "pooling": "none"},
                "img_enc": {"name": "simple", "params": {"img_dim": 40}, "pooling": "none"},
                "similarity": {"name": f"adapt_{options['direction']}", "params": score},
            },
        }
    return options


def build(case, folder, *, layout=zipped, drop=(), add=None, state=None, opt=None, **changes):
    """A checkpoint of a golden case as the original's trainer saves it, ``changes`` are of its options."""
    arrays, options = golden(case)
    weights = {ours.removeprefix("w/"): array for ours, array in arrays.items() if ours.startswith("w/")}
    weights = {ours: array.astype("i8") if ours.endswith("tracked") else array for ours, array in weights.items()}
    weights = {ours: array for ours, array in weights.items() if ours not in drop} | (add or {})
    ours, tensors = options_of(case, options), Tensors()
    for key, value in changes.items():
        target = ours
        *groups, last = key.split("__")
        for group in groups:
            target = target[group]
        target[last] = value
    if CASES[case][0] == "adapt":
        # The similarity has a wrapper, and the one for translations is the same object.
        inner = {key.removeprefix("similarity."): x for key, x in weights.items() if key.startswith("similarity.")}
        outer = {key: x for key, x in weights.items() if not key.startswith("similarity.")}
        for prefix in ("similarity.similarity.", "ml_similarity.similarity."):
            outer |= {prefix + key: x for key, x in inner.items()}
        moments = {"state": {0: {"step": 3, "exp_avg": tensors(np.ones((2, 2), "f4"))}}, "param_groups": []}
        value = {
            "model": tensors.state(outer),
            "optimizer": moments,
            "iteration": 77,
            "args": addict(ours),
            "rsum": 500.0,
        }
    else:
        sides = [
            {key.removeprefix(side): x for key, x in weights.items() if key.startswith(side)}
            for side in systems.PARTS.get(CASES[case][0], ("img/", "txt/"))
        ]
        value = {
            "epoch": 4,
            "model": [tensors.state(side) for side in sides] if state is None else state,
            "best_rsum": 400.0,
            "opt": instance("argparse", "Namespace", ours) if opt is None else opt,
            "Eiters": 99,
        }
    path = folder / "model_best.pth.tar"
    path.write_bytes(
        zipped(value, tensors.storages) if layout is zipped else stream(value, tensors.storages, sizes=tensors.sizes)
    )
    return path


def inputs(case, converted):
    arrays, _ = golden(case)
    feature, token = arrays["in/feature"], arrays["in/token"]
    rows = np.arange(len(token))
    regions = feature.shape[1] if feature.ndim == 3 else 1
    length = arrays.get("in/feature_length", np.full(len(rows), regions))
    image = Images({converted.config.model.feature: feature}, np.arange(regions) < length[:, None], rows)
    return image, Texts(token, np.arange(token.shape[1]) < arrays["in/length"][:, None], rows, rows, rows)


def outputs(case, converted, token=None):
    """Scores, and what the two sides are before them, as the golden arrays name them."""
    image, text = inputs(case, converted)
    text = text if token is None else text._replace(token=token)

    @jax.jit
    def compute(variables):
        def encode(method, keye):
            return converted.model.apply(variables, keye, train=False, method=method)[0]

        sides = encode("encode_image", image), encode("encode_text", text)
        out = {"score": converted.model.apply(variables, *sides, method="score")}
        if CASES[case][0] == "scan":
            return out | {"region": sides[0]["region"].feature, "word": sides[1]["word"].feature}
        if CASES[case][0] == "adapt":
            encoders = (("region", "regions", image), ("word", "words", text))
            return out | {key: converted.model.apply(variables, x, method=method) for key, method, x in encoders}
        if CASES[case][0] == "sgraf":
            whole = {"image_global": sides[0].whole, "text_global": sides[1].whole}
            return out | whole | {"region": sides[0].part.feature, "word": sides[1].part.feature}
        if CASES[case][0] == "chan":
            return out | {"region": sides[0].feature, "word": sides[1].feature}
        return out | {"image": sides[0], "caption": sides[1]}

    return compute(converted.variables)


def check(case, found):
    arrays, _ = golden(case)
    for part, value in found.items():
        want = arrays[f"out/{part}"]
        np.testing.assert_allclose(value, want, atol=1e-5 * max(1.0, np.abs(want).max()), rtol=0, err_msg=part)


@pytest.mark.parametrize(("case", "file"), [("scan t2i", "scan"), ("vsepp", "vsepp")])
def test_the_originals_own_checkpoints_score_as_they_did(case, file):
    converted = flow.convert(CASES[case][0], GOLDEN / f"{file}_checkpoint.pth.tar")
    check(case, outputs(case, converted))
    assert converted.vocabulary is None and converted.unused == []
    assert converted.facts.image == {"scan": {"region": Feature((None, 40))}, "vsepp": {"global": Feature((48,))}}[file]


@pytest.mark.parametrize("layout", [zipped, stream])
@pytest.mark.parametrize("case", CASES)
def test_built_checkpoints_score_as_the_original(case, layout, tmp_path):
    converted = flow.convert(CASES[case][0], build(case, tmp_path, layout=layout))
    check(case, outputs(case, converted))
    leaves = flat(converted.variables)
    assert converted.mapped.keys() == leaves.keys()
    assert {leaf.dtype for leaf in leaves.values()} == {np.dtype("float32")}


def test_the_report_names_every_tensor(tmp_path):
    path = build("vse_infty", tmp_path)
    text = flow.report(flow.convert("vse_infty", path), path)
    lines = text.splitlines()
    assert lines[0] == f"{path}: The checkpoint's own note: best rsum on dev 400.0, saved with epoch 4."
    assert "  img/mlp.bns.0.running_var -> batch_stats/image_mlp/norm/var [12]" in lines
    assert "  img/fc.weight -> params/image_linear/kernel [40, 24]" in lines
    assert "37 tensors read, nothing left over" in lines
    assert "6 that using the model does not need: " in text and "img/mlp.bns.1.weight" in text
    assert '"embed_size": 24' in text and lines[-1] == "no code in the file was executed"
    assert sum(" -> " in line for line in lines) == 37


def test_wrappers_and_wider_numbers_do_not_matter(tmp_path):
    arrays, _ = golden("vse_infty")
    weights = {key: array for key, array in arrays.items() if key.startswith("w/")}
    add = {
        key.removeprefix("w/").replace("/", "/module."): x.astype("f8" if x.ndim else "i8")
        for key, x in weights.items()
    }
    path = build("vse_infty", tmp_path, drop=[key.removeprefix("w/") for key in weights], add=add)
    check("vse_infty", outputs("vse_infty", flow.convert("vse_infty", path)))
    twice = build("scan t2i", tmp_path, add={"img/module.fc.bias": np.zeros(24, "f4")})
    with pytest.raises(CheckpointError, match="two tensors of the checkpoint have the same name"):
        flow.convert("scan", twice)


def test_options_become_config(tmp_path):
    converted = flow.convert(
        "scan", build("scan i2t", tmp_path, agg_func="Sum", raw_feature_norm="no_norm", lambda_softmax=7)
    )
    model = converted.config.model
    assert (model.direction, model.pool, model.norm, model.smooth) == ("i2t", "sum", "no_norm", 7.0)
    converted = flow.convert("vsepp", build("order", tmp_path, no_imgnorm=True, data_name="coco_precomp", num_epochs=3))
    model = converted.config.model
    assert (model.measure, model.absolute, model.normalise_train, model.normalise_test) == (
        "order_root",
        True,
        False,
        False,
    )
    assert (converted.config.loss.margin, converted.config.loss.hardness, converted.config.epochs) == (0.05, 0.0, 3.0)
    assert converted.config.data.dir == "data/coco"
    names = [f"txt/rnn.{kind}_l0_reverse" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    converted = flow.convert("scan", build("scan t2i", tmp_path, drop=names, bi_gru=False))
    assert not converted.config.model.bidirectional and len(converted.mapped) == 7
    converted = flow.convert("adapt", build("adapt t2i", tmp_path))
    assert converted.config.model.compat_padding and converted.config.data.batch_size == 105
    assert any("padding counts" in note for note in converted.notes)


def test_variants_of_sgraf_and_chan(tmp_path):
    names = [f"txt/cap_rnn.{kind}_l0_reverse" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    converted = flow.convert("sgraf", build("saf", tmp_path, drop=names, bi_gru=False, sgr_step=7))
    model = converted.config.model
    assert (model.reasoning, model.bidirectional, model.similarity_dim, model.regions) == ("saf", False, 16, 36)
    assert any("this is SAF alone" in note for note in converted.notes)
    last = [
        f"sim/SGR_module.2.{part}.{leaf}"
        for part in ("graph_query_w", "graph_key_w", "sim_graph_w")
        for leaf in ("weight", "bias")
    ]
    assert flow.convert("sgraf", build("sgr", tmp_path, drop=last, sgr_step=2)).config.model.steps == 2
    arrays, _ = golden("chan")
    attention = [key.removeprefix("w/") for key in arrays if "feedforward" in key]
    changes = {"precomp_enc_type": "basic", "coding_type": "THACoding", "pooling_type": "MeanPooling", "belta": 0.3}
    model = flow.convert("chan", build("chan", tmp_path, drop=attention, **changes)).config.model
    assert (model.heads, model.direction, model.pool, model.temperature) == (0, "i2t", "mean", 0.3)


CNN = {"img/cnn.features.0.weight": np.zeros((2, 2), "f4")}
BERT = {"txt/bert.embeddings.weight": np.zeros((2, 2), "f4")}
REFUSALS = [
    ("vsepp", {"num_layers": 2}, "opt.num_layers = 2; this reads only 1"),
    ("vsepp", {"measure": "euclidean"}, "opt.measure = 'euclidean'; this reads only cosine, order"),
    ("vsepp", {"use_abs": "yes"}, "opt.use_abs = 'yes'; this reads True or False"),
    ("vsepp", {"embed_size": 1024}, "opt.embed_size = 1024; this reads only 24"),
    ("vsepp", {"vocab_size": 61}, "opt.vocab_size = 61; this reads only 60"),
    ("vsepp", {"cross_attn": "t2i"}, "opt.cross_attn = 't2i'; this reads checkpoints of VSE++ here"),
    ("vsepp", {"add": CNN}, "holds an image network (cnn.*); only encoders of precomputed features"),
    ("vsepp", {"drop": ["img/fc.weight"]}, "has no matrix img/fc.weight"),
    ("vsepp", {"state": []}, "no checkpoint of vsepp, which is a dictionary with the states of images and texts"),
    ("vsepp", {"state": [{}, {"a": 1}]}, "no checkpoint of vsepp"),
    ("vsepp", {"state": [[], []]}, "no checkpoint of vsepp"),
    ("vsepp", {"opt": ["cosine"]}, "no checkpoint of vsepp"),
    ("vsepp", {"drop": ["img/fc.weight"], "add": {"img/fc.weight": np.ones(9, "f4")}}, "has no matrix img/fc.weight"),
    ("vsepp", {"margin": True}, "opt.margin = True; this reads numbers"),
    ("vsepp", {"margin": "0.2"}, "opt.margin = '0.2'; this reads numbers"),
    ("vsepp", {"num_layers": tensor((2,), (1,), 0, storage("0", 24 * 48))}, "opt.num_layers = a ndarray; this reads"),
    ("scan t2i", {"precomp_enc_type": "weight_norm"}, "opt.precomp_enc_type = 'weight_norm'; this reads only 'basic'"),
    ("scan t2i", {"no_txtnorm": True}, "opt.no_txtnorm = True; this reads only False"),
    ("scan t2i", {"no_imgnorm": True}, "opt.no_imgnorm = True; this reads only False"),
    ("scan t2i", {"agg_func": "Median"}, "opt.agg_func = 'Median'; this reads only LogSumExp, Max, Mean, Sum"),
    ("scan t2i", {"raw_feature_norm": "l3norm"}, "opt.raw_feature_norm = 'l3norm'"),
    ("scan t2i", {"lambda_softmax": float("nan")}, "opt.lambda_softmax = nan; this reads numbers of a usual size"),
    ("scan t2i", {"margin": 1 << 2000}, "; this reads numbers of a usual size"),
    ("scan t2i", {"agg_func": ["Mean"]}, "opt.agg_func = a list; this reads only"),
    ("scan t2i", {"agg_func": "\x1b[31m" * 1000}, "opt.agg_func = '\\x1b[31m\\x1b"),
    ("scan t2i", {"add": {"img/\x1b[31m": np.ones(1, "f4")}}, "has the name '\\x1b[31m', which no module gives"),
    ("scan t2i", {"add": {"img/fc.bias": np.full(24, 1e200)}}, "tensor img/fc.bias is not finite as float32"),
    ("scan t2i", {"cross_attn": None}, "opt.cross_attn = None; this reads only i2t, t2i"),
    ("scan t2i", {"bi_gru": False}, "has, left over, txt/rnn.bias_hh_l0_reverse, txt/rnn.bias_ih_l0_reverse"),
    ("scan t2i", {"drop": ["txt/rnn.bias_ih_l0"]}, "the checkpoint lacks txt/rnn.bias_ih_l0;"),
    ("scan t2i", {"add": {"img/fc2.bias": np.ones(1, "f4")}}, "the checkpoint has, left over, img/fc2.bias;"),
    ("scan t2i", {"add": {"img/fc.bias": np.full(24, np.nan, "f4")}}, "tensor img/fc.bias is not finite"),
    ("scan t2i", {"add": {"img/fc.bias": np.ones(24, "i8")}}, "tensor img/fc.bias holds int64"),
    ("scan t2i", {"add": {"img/fc.bias": np.ones(25, "f4")}}, "tensor img/fc.bias becomes [25], the model wants [24]"),
    ("vse_infty", {"add": BERT}, "holds BERT (bert.*)"),
    ("vse_infty", {"precomp_enc_type": "backbone"}, "opt.precomp_enc_type = 'backbone'"),
    ("vse_infty", {"no_imgnorm": True}, "opt.no_imgnorm = True"),
    ("sgr", {"module_name": "AVE"}, "opt.module_name = 'AVE'; this reads only SAF, SGR"),
    ("sgr", {"sgr_step": 4}, "opt.sgr_step = 4; this reads only 3"),
    ("sgr", {"sim_dim": 256}, "opt.sim_dim = 256; this reads only 16"),
    ("sgr", {"no_imgnorm": True}, "opt.no_imgnorm = True"),
    ("sgr", {"module_name": "SAF"}, "the checkpoint lacks sim/SAF_module.attn_sim_w.bias"),
    ("saf", {"drop": ["sim/sim_tranloc_w.weight"]}, "has no matrix sim/sim_tranloc_w.weight"),
    (
        "saf",
        {"add": {"sim/v_global_w.embedding_local.1.bias": np.ones(50, "f4")}},
        "becomes [50], the model wants [36]",
    ),
    ("saf", {"state": []}, "with the states of images and texts and 1 more"),
    ("chan", {"text_enc_type": "bert"}, "opt.text_enc_type = 'bert'; this reads only 'bigru'"),
    (
        "chan",
        {"precomp_enc_type": "transformer"},
        "opt.precomp_enc_type = 'transformer'; this reads only basic",
    ),
    ("chan", {"coding_type": "VSACoding"}, "opt.coding_type = 'VSACoding'; this reads only THACoding, VHACoding"),
    ("chan", {"pooling_type": "SoftmaxPooling"}, "opt.pooling_type = 'SoftmaxPooling'"),
    ("chan", {"add": BERT}, "holds BERT (bert.*)"),
    ("adapt t2i", {"model__similarity__name": "scan_t2i"}, "args.model.similarity.name = 'scan_t2i'"),
    ("adapt t2i", {"model__similarity__params__train_gamma": True}, "args.model.similarity.params.train_gamma = True"),
    ("adapt t2i", {"model__txt_enc__name": "gru"}, "args.model.txt_enc.name = 'gru'; this reads only 'gru_glove'"),
    ("adapt t2i", {"model__txt_enc__params__add_rand_embed": False}, "params.add_rand_embed = False"),
    ("adapt t2i", {"model__img_enc__name": "resnet152"}, "args.model.img_enc.name = 'resnet152'"),
    ("adapt t2i", {"model__similarity__name": "adapt_i2t"}, "lacks similarity.adapt_txt.fc_beta.0.bias"),
]


@pytest.mark.parametrize(
    ("case", "changes", "says"), REFUSALS, ids=[f"{case}: {says[:40]}" for case, _, says in REFUSALS]
)
def test_what_is_not_read_is_named(case, changes, says, tmp_path):
    path = build(case, tmp_path, **changes)
    with pytest.raises(CheckpointError, match=re.escape(says)) as caught:
        flow.convert(CASES[case][0], path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and said.isprintable() and len(said) < 500 + len(str(path))


def test_a_checkpoint_of_another_system_is_not_taken(tmp_path):
    for case, other in (
        ("scan t2i", "adapt"),
        ("adapt t2i", "scan"),
        ("vsepp", "vse_infty"),
        ("vse_infty", "vsepp"),
        ("scan t2i", "sgraf"),
        ("sgr", "chan"),
        ("chan", "sgraf"),
        ("chan", "scan"),
    ):
        with pytest.raises(CheckpointError, match=r"another system|the system that it belongs to"):
            flow.convert(other, build(case, tmp_path))


# Vocabularies


def theirs(ours, order=(0, 1, 2, 3)):
    """The original's JSON with the special words in another order."""
    listed = [*(ours[k] for k in order), *ours[4:]]
    ids = {word: k for k, word in enumerate(listed)}
    return {"word2idx": ids, "idx2word": {str(k): word for word, k in ids.items()}, "idx": len(listed)}


def test_vocabularies_of_every_form(tmp_path):
    path = tmp_path / "vocab"
    path.write_text(json.dumps(theirs(OURS)))
    assert words.read_words(path) == OURS
    Vocabulary(OURS).save(path)
    assert words.read_words(path) == OURS
    plain = theirs(OURS)
    by_number = {int(k): word for k, word in plain["idx2word"].items()}
    for module in ("vocab", "build_vocab", "__main__"):
        path.write_bytes(run(instance(module, "Vocabulary", {**plain, "idx2word": by_number})))
        assert words.read_words(path) == OURS


def test_vocabularies_that_do_not_fit_are_named(tmp_path):
    path = tmp_path / "vocab.json"
    checkpoint = build("scan t2i", tmp_path)
    holes = theirs(OURS)
    holes["word2idx"]["word9"] = 70
    cases = [
        (json.dumps(theirs(OURS[:-1])), "has 59 words, the checkpoint 60"),
        (json.dumps(theirs([*OURS, "<mask>", "more"])), "has 62 words, the checkpoint 60"),
        (json.dumps(theirs(["<eos>", *OURS[1:]])), "lacks <pad>"),
        (json.dumps(theirs([*OURS[:-1], "two words"])), "has a space in it"),
        (json.dumps(holes), "do not have the ids 0 to 59"),
        (json.dumps({"word2idx": {"a": "1"}}), 'has no "word2idx" from words to numbers'),
        (json.dumps([1]), 'has no "word2idx"'),
        ("{", "is neither JSON nor a pickled vocabulary"),
        ('{"format": "xmodal_jax vocabulary 1"}', "not a sound vocabulary file"),
        (run(call("os", "system", "true")), "asks for os.system"),
    ]
    for content, says in cases:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(CheckpointError, match=re.escape(says)) as caught:
            flow.convert("scan", checkpoint, path)
        assert str(caught.value).startswith(str(path))
    with pytest.raises(CheckpointError, match="cannot read the vocabulary"):
        flow.convert("scan", checkpoint, tmp_path / "none.json")


def test_special_words_in_another_order_are_moved(tmp_path):
    """ADAPT's come as <pad>, <unk>, <start>, <end>; both of its word tables and every score follow."""
    path = tmp_path / "vocab.json"
    path.write_text(json.dumps(theirs(OURS, order=(0, 3, 1, 2))))
    converted = flow.convert("adapt", build("adapt t2i", tmp_path), path)
    assert converted.vocabulary is not None and converted.vocabulary.words == OURS
    assert any("rows of the word tables were moved" in note for note in converted.notes)
    ours = np.array([0, 3, 1, 2, *range(4, 60)])  # our id of each of their words
    token = ours[golden("adapt t2i")[0]["in/token"]]
    check("adapt t2i", outputs("adapt t2i", converted, token))


def test_the_mask_of_vse_infty_is_no_word(tmp_path):
    checkpoint, path = build("vse_infty", tmp_path), tmp_path / "vocab.json"
    for listed in (OURS[:-1], [*OURS[:-1], "<mask>"]):
        path.write_text(json.dumps(theirs(listed)))
        converted = flow.convert("vse_infty", checkpoint, path)
        assert converted.vocabulary is not None and converted.vocabulary.words == OURS[:-1]
        check("vse_infty", outputs("vse_infty", converted))


# The whole way


def sentences(tokens, lengths):
    return [" ".join(OURS[k] for k in row[1 : size - 1]) for row, size in zip(tokens, lengths, strict=True)]


def test_the_bundle_scores_sentences_as_the_original_scores_ids(tmp_path, capsys):
    arrays, _ = golden("scan t2i")
    vocabulary, out = tmp_path / "vocab.json", tmp_path / "bundle"
    vocabulary.write_text(json.dumps(theirs(OURS)))
    checkpoint = GOLDEN / "scan_checkpoint.pth.tar"
    assert cli.run(["convert", "scan", str(checkpoint), "--vocab", str(vocabulary), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "11 tensors read, nothing left over" in said and "no code in the file was executed" in said
    m = xmodal_jax.load(out)
    images = m.embed_images(arrays["in/feature"])
    tokens = m.embed_tokens(arrays["in/token"], arrays["in/length"])
    np.testing.assert_allclose(m.score(images, tokens), arrays["out/score"], atol=1e-5, rtol=0)
    plain = np.array([[1, *range(4, 9), 2]], np.int32)
    np.testing.assert_allclose(
        m.score(images, m.embed_texts(sentences(plain, [7]))), m.score(images, m.embed_tokens(plain)), atol=1e-6
    )
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "kuanghuei/SCAN" in card and "best rsum on dev 398.7" in card and "Nothing was measured here." in card
    config = json.loads((out / "config.json").read_text())
    assert config["model"]["embed_dim"] == 24


def test_without_a_vocabulary_the_bundle_takes_ids_and_says_so(tmp_path, capsys):
    out = tmp_path / "bundle"
    assert cli.run(["convert", "vsepp", str(GOLDEN / "vsepp_checkpoint.pth.tar"), "--out", str(out)]) == 0
    note = "without --vocab the bundle takes the token ids of the original's vocabulary, and no sentences"
    assert f"note: {note}" in capsys.readouterr().out
    card = (out / "README.md").read_text(encoding="utf-8")
    assert note in card and "token ids below 60 (it has no vocabulary)" in card
    arrays, m = golden("vsepp")[0], xmodal_jax.load(out)
    assert m.vocabulary is None
    scores = m.score(m.embed_images(arrays["in/feature"]), m.embed_tokens(arrays["in/token"], arrays["in/length"]))
    np.testing.assert_allclose(scores, arrays["out/score"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ["sgr", "saf", "chan"])
def test_bundles_of_scores_between_fragments_score_as_the_original(case, tmp_path):
    arrays, out = golden(case)[0], tmp_path / "bundle"
    assert cli.run(["convert", CASES[case][0], str(build(case, tmp_path)), "--out", str(out)]) == 0
    m = xmodal_jax.load(out)
    scores = m.score(m.embed_images(arrays["in/feature"]), m.embed_tokens(arrays["in/token"], arrays["in/length"]))
    check(case, {"score": scores})


def test_the_command_line_refuses_in_one_sentence(tmp_path, capsys):
    bad = tmp_path / "bad.pth"
    bad.write_bytes(zipped(call("os", "system", f"touch {tmp_path / 'executed'}")))
    assert cli.run(["convert", "scan", str(bad), "--out", str(tmp_path / "bundle")]) == 4
    said = capsys.readouterr().err
    assert said == (
        f"xmodal: {bad} is refused, and nothing in it was executed: it asks for os.system, which no such file needs; "
        "get the file from its authors again, or from somebody you trust.\n"
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.pth"]
