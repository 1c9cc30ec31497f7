"""Configs: finding, overriding, saving, comparing, stages; every refusal says what to do."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT
from test_configs import specs

from xmodal_jax import cli
from xmodal_jax import config as configs
from xmodal_jax.defaults import MEANINGS, base
from xmodal_jax.errors import CheckpointError, UsageError
from xmodal_jax.models import scan
from xmodal_jax.training import checks
from xmodal_jax.verbs import reference, results


def test_overrides_are_typed():
    config = configs.load(
        "vse.py:vsepp,f8k,tiny",
        ["--config.optim.lr=1e-3", "--config.data.lengths=(8,16)", "--config.loss.mask_same_image=True"],
    )
    assert config.optim.lr == 1e-3
    assert list(config.data.lengths) == [8, 16]
    assert config.loss.mask_same_image is True
    assert config.data.dir == "data/f8k"
    assert config.model.embed_dim == 32


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.lr=1", 'No config key "lr". Did you mean "optim.lr"?'),
        ("--config.optim.lrr=1", 'Did you mean "optim.lr"?'),
        ("--config.optim.lr=fast", "could not convert"),
        ("--config.optim=1", "is a group"),
        ("--config.optim.lr", "overrides look like"),
    ],
)
def test_bad_overrides(override, message):
    with pytest.raises(UsageError) as caught:
        configs.load("vse.py", [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("spec", "message"), [("vsee.py", "the package has "), ("vse.py:scan", '"scan"')])
def test_bad_names(spec, message):
    with pytest.raises(UsageError) as caught:
        configs.load(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_readme_way_to_name_a_config():
    assert configs.flatten(configs.load("configs/vse.py:uvs")) == configs.flatten(configs.load("vse.py:uvs"))


def test_saved_config_is_read_back_and_compared(tmp_path):
    config = configs.load("vse.py:vse0,f8k,tiny")
    configs.save(config, tmp_path / "config.json")
    again = configs.read(tmp_path)
    assert configs.flatten(again) == configs.flatten(config)
    configs.check_same(again, config, tmp_path)
    free = configs.load("vse.py:vse0,f8k,tiny", ["--config.parallel=pmap", "--config.log.every_steps=1"])
    configs.check_same(again, free, tmp_path)
    other = configs.load("vse.py:vse0,f8k,tiny", ["--config.optim.lr=0.5"])
    with pytest.raises(CheckpointError, match=r"optim.lr: 0.0002 there, 0.5 here"):
        configs.check_same(again, other, tmp_path)
    with pytest.raises(CheckpointError, match="not a run folder"):
        configs.read(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        configs.read(tmp_path)


def test_an_unknown_variant_is_one_sentence():
    with pytest.raises(
        UsageError, match=r'cannot be loaded: no variant or data set "vsep"; there are vsepp, .*tiny\.$'
    ):
        configs.load("vse.py:vsep,f8k")


def test_stages_override_the_rest():
    config = configs.load("vse.py:f8k")
    config.stages = ({"epochs": 1.0}, {"epochs": 2.0, "optim": {"lr": 1e-5}, "keep_optimiser": True})
    first, second = configs.stages(config)
    assert (first.epochs, first.optim.lr, first.keep_optimiser) == (1.0, 2e-4, False)
    assert (second.epochs, second.optim.lr, second.keep_optimiser) == (2.0, 1e-5, True)
    assert second.optim.b1 == 0.9
    config.stages = ({"optim": {"rate": 1.0}},)
    with pytest.raises(UsageError, match=r"optim\.rate"):
        configs.stages(config)


@pytest.mark.parametrize(
    "override", [{"seed": 1}, {"data": {"lengths": (8,)}}, {"model": {"embed_dim": 8}}, {"ema": 0.9}]
)
def test_a_stage_sets_only_what_takes_effect_there(override):
    config = configs.load("vse.py:f8k")
    config.stages = ({"epochs": 1.0, "data": {"batch_size": 8, "sampler": "images"}, "weights": {"rank": 2.0}},)
    assert configs.stages(config)[0].data.batch_size == 8
    config.stages = (override,)
    with pytest.raises(UsageError, match="holds for the whole run"):
        configs.stages(config)


def test_data_of_any_name_takes_the_published_settings(tmp_path, capsys):
    published = configs.load("vse.py:vsepp", data=str(tmp_path))
    assert (published.model.embed_dim, published.optim.lr, published.data.dir) == (1024, 2e-4, str(tmp_path))
    assert configs.load("vse.py:vsepp,scenes", data=str(tmp_path)).model.embed_dim == 128
    assert not capsys.readouterr().out
    assert configs.load("vse.py:vsepp", [f"--config.data.dir={tmp_path}"]).model.embed_dim == 128
    assert "settings of the built-in scenes" in capsys.readouterr().out
    for path in sorted((ROOT / "configs").glob("*.py")):
        assert configs.load(path.name, data=str(tmp_path)).data.dir == str(tmp_path)


@pytest.mark.parametrize(
    "argv", [["--help"], ["train", "--help"], ["data", "import", "--help"], ["eval", "--help"], ["demo", "--help"]]
)
def test_help_imports_nothing_heavy(argv):
    code = (
        "import sys; from xmodal_jax import cli\n"
        f"try: cli.run({argv!r})\nexcept SystemExit as end: assert end.code == 0\n"
        "heavy = {'jax', 'flax', 'tensorflow'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "exit codes" in done.stdout


def test_importing_the_package_and_its_core_leaves_tensorflow_alone():
    code = (
        "import sys, xmodal_jax, xmodal_jax.train, xmodal_jax.evaluate, xmodal_jax.models.vse\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


BAD = [
    ("data.batch_size", 0, "at least 1"),
    ("data.lengths", (), "lengths of at least 3"),
    ("data.sampler", "bucket", "one of captions, images"),
    ("data.dev_images", -1, "at least 0"),
    ("steps", -5, "at least 0"),
    ("epochs", 0.0, "above 0"),
    ("epochs", float("nan"), "above 0"),
    ("ema", 1.0, "below 1"),
    ("block", (1, 2), "(images, captions, pairs)"),
    ("parallel", "pmaps", "one of jit, pmap"),
    ("loss.name", "triplets", "one of triplet"),
    ("loss.margin", -1.0, "at least 0"),
    ("loss.hardness", 2.0, "from 0 to 1"),
    ("weights.rank", -1.0, "at least 0"),
    ("optim.name", "lion", "one of adam"),
    ("optim.lr", -1.0, "at least 0"),
    ("optim.lr", float("inf"), "at least 0"),
    ("optim.schedule.kind", "linear", "one of constant"),
    ("optim.schedule.at", (-1.0,), "epochs above 0"),
    ("optim.rules", ({"match": "(", "lr": 1.0},), "regular expression"),
    ("optim.rules", ({"match": ".*", "lr": -1.0},), "factors at least 0"),
    ("log.every_steps", 0, "at least 1"),
    ("checkpoint.keep", 0, "at least 1"),
    ("init.skip", ("(",), "regular expressions"),
    ("model.dtype", "float8", "one of float32"),
    ("model.norm", "foo", "one of no_norm"),
    ("model.pool", "median", "one of lse"),
    ("model.direction", "both", "one of t2i, i2t"),
    ("model.embed_dim", 0, "at least 1"),
    ("model.dropout", 1.0, "below 1"),
]


@pytest.mark.parametrize(("key", "value", "words"), BAD)
def test_a_value_out_of_range_is_one_sentence_at_the_start(key, value, words):
    config = configs.load("scan.py:t2i_lse,f8k")
    *groups, name = key.split(".")
    group = config
    for part in groups:
        group = group[part]
    with group.unlocked(), group.ignore_type():
        group[name] = value
    with pytest.raises(UsageError) as caught:
        checks.check(config)
    assert str(caught.value).startswith(f"config.{key} is ") and words in str(caught.value)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_values_of_stages_are_held_against_the_same_table():
    config = configs.load("vse.py:vsepp,f8k")
    config.stages = ({"epochs": 1.0}, {"optim": {"lr": -1.0}})
    with pytest.raises(UsageError, match=r"^config\.stages\[1\]\.optim\.lr is -1\.0; it must be at least 0\.$"):
        checks.check(config)


def test_every_config_of_the_package_passes_and_nearly_all_its_values_are_checked():
    for path in sorted((ROOT / "configs").glob("*.py")):
        module = results.module_of(path)
        for variant in module.VARIANTS:
            for data in ("scenes", "f8k", "coco"):
                config = configs.load(f"{path.name}:{variant},{data}")
                checks.check(config)
                free = {
                    key
                    for key, value in configs.flatten(config).items()
                    if not isinstance(value, bool) and checks.find(*checks.within(key, config)) is None
                }
                paths = {"data.dir", "data.word_vectors", "init.workdir", "init.backbone"}
                free_text = r"model\.(tower\.)?(name|feature|text|concept|context)"
                names = {key for key in free if re.fullmatch(free_text, key)}
                assert free - names <= {*paths, "stages"}


def test_keys_of_a_system_within_a_system_are_held_against_its_own():
    config = configs.load("mte.py:vsepp,f8k", ["--config.model.tower.text=lstm"])
    with pytest.raises(UsageError, match=r"^config\.model\.tower\.text is \"lstm\"; it must be one of gru, bow\.$"):
        checks.check(config)


@pytest.mark.parametrize("key", [key for key in checks.MODEL if not key.startswith("model.") and "*" not in key])
def test_what_a_system_says_of_its_own_field_goes_before_what_all_say(key):
    model, _, field = key.partition(".")
    assert checks.find(f"model.{field}", model) is checks.MODEL[key]


def test_fields_of_a_model_file_are_its_own():
    assert checks.find("model.norm", "models/new.py") is None
    assert checks.find("optim.lr", "models/new.py") is not None


def test_settings_of_the_scenes_are_never_taken_for_other_data_in_silence(tmp_path, capsys):
    copy = tmp_path / "mine.py"
    copy.write_text((ROOT / "configs" / "vse.py").read_text())
    configs.load(f"{copy}:vsepp", data=str(tmp_path))
    assert "settings of the built-in scenes" in capsys.readouterr().out
    configs.load(f"{copy}:vsepp,f8k", data=str(tmp_path))
    configs.load("vse.py:vsepp", data=str(tmp_path))
    (tmp_path / "manifest.json").write_text('{"source": {"scenes": 1}}')
    configs.load(f"{copy}:vsepp", data=str(tmp_path))
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("train --config vse.py --workdir x --config.optim.lr 1e-3", 'follows "=", as in --config.optim.lr=1e-3'),
        ("train --config vse.py --config.epochs --workdir x", "as in --config.epochs=VALUE"),
        ("trian --config vse.py --workdir x", 'Did you mean "train"?'),
        ("data improt x", 'Did you mean "import"?'),
        ("eval --workdir x --spilt test", 'nothing is known of "--spilt". Did you mean "--split"?'),
        ("train --config vse.py --workdir x --epochs=3", "given as --config.epochs=VALUE"),
        ("eval --workdir x test", 'nothing is known of "test"'),
        ("eval", "arguments --workdir --ensemble --bundle --embeddings is required"),
    ],
)
def test_a_slip_on_the_command_line_is_one_sentence_with_a_hint(argv, words, capsys):
    with pytest.raises(SystemExit) as end:
        cli.run(argv.split())
    error = capsys.readouterr().err
    assert end.value.code == 2 and words in error
    assert error.startswith("xmodal: ") and error.count("\n") == 1


# The page of all keys


def test_every_key_has_a_meaning_and_every_meaning_a_key():
    keys = set(configs.flatten(base("own")))
    known = set(checks.TABLE) - {"weights.*", "ramps.*"} | {
        "weights.captioning",
        "weights.paraphrasing",
        "model.name",
        "model.dtype",
    }
    for spec in specs():
        keys |= {key for key in configs.flatten(configs.load(spec)) if not key.startswith("model.")}
    assert set(MEANINGS) == keys | known
    assert not any(meaning.endswith(".") for meaning in MEANINGS.values())


def test_the_page_of_config_keys_is_up_to_date():
    page = reference.config_page()
    assert (ROOT / "docs" / "config.md").read_text(encoding="utf-8") == page, (
        "python -m xmodal_jax.verbs.reference docs/config.md"
    )
    assert "| `optim.lr` | `0.0002` | at least 0 | learning rate before schedule and rules |" in page
    assert "| `model.direction` | `'t2i'` | one of t2i, i2t |" in page
    assert reference.attributes(scan.Model)["smooth"] == "see `xmodal_jax.similarity.cross_attention`"
