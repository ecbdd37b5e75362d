import numpy as np
import pytest
from conftest import make_small

from mnist_jax.data.normalization import Normalization, measure
from mnist_jax.data.records import Split
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.train import train


def test_means_and_deviations_of_each_channel():
    images = np.random.default_rng(0).integers(0, 256, (5000, 3, 2, 3), np.uint8)
    images[..., 2] = 51  # a channel without variation
    normalization = measure(Split(images, np.zeros(5000, np.int32)), 255)
    pixels = images.reshape(-1, 3) / 255
    assert np.allclose(normalization.mean, pixels.mean(0), rtol=1e-12)
    assert np.allclose(normalization.deviation[:2], pixels.std(0)[:2], rtol=1e-12) and normalization.deviation[2] == 1
    assert normalization.mean[2] == pytest.approx(0.2)


@pytest.mark.parametrize('normalize', ['standard', 'none'])
def test_the_model_sees_normalized_pixels_with_and_without_the_data(data_dir, tmp_path, normalize):
    config = make_small(data_dir, dataset__normalize=normalize, epochs=1, dataset__validation_fraction=0.2, chunks=2)
    result = train(config, tmp_path / 'one')
    config.devices = 1
    assert train(config, tmp_path / 'two')['params_sha256'] == result['params_sha256']
    unit = make_small(data_dir, epochs=1, dataset__validation_fraction=0.2, chunks=2)
    assert train(unit, tmp_path / 'unit')['params_sha256'] != result['params_sha256']
    model = RestoredModel.load(tmp_path / 'one')
    source = model.plan.source
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), np.uint8)
    x = images.astype(np.float32)
    if normalize == 'standard':
        normalization = source.normalization
        assert isinstance(normalization, Normalization) and 0.1 < normalization.mean[0] < 0.16
        x = (x / 255 - np.float32(normalization.mean[0])) / np.float32(normalization.deviation[0])
    params = model.params
    hidden = np.maximum(x.reshape(3, -1) @ params['Dense_0']['kernel'] + params['Dense_0']['bias'], 0)
    expected = hidden @ params['Dense_1']['kernel'] + params['Dense_1']['bias']
    assert np.allclose(model.logits(images), expected, rtol=1e-4, atol=1e-4)
