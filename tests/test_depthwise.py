"""One filter a channel: equal to XLA's grouped convolution, values and gradients."""

import jax
import numpy as np
import pytest

from xmodal_jax.layers.backbones.depthwise import Depthwise


@pytest.mark.parametrize(("side", "size", "stride"), [(7, 3, 1), (8, 3, 2), (9, 5, 2), (6, 5, 1), (2, 5, 2)])
def test_it_is_the_grouped_convolution(side, size, stride):
    rng = np.random.default_rng(side)
    x = rng.normal(size=(2, side, side + 1, 6)).astype(np.float32)
    layer = Depthwise(size, stride)
    variables = layer.init(jax.random.key(0), x)

    def grouped(kernel, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=numbers, feature_group_count=6
        )

    kernel = variables["params"]["kernel"]
    ours, theirs = layer.apply(variables, x), grouped(kernel, x)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    weight = rng.normal(size=ours.shape).astype(np.float32)
    gradients = [
        jax.grad(lambda k, x, f=f: (f(k, x) * weight).sum(), (0, 1))(kernel, x)
        for f in (lambda k, x: layer.apply({"params": {"kernel": k}}, x), grouped)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *gradients)
