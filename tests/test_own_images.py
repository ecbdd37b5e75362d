"""Whole runs on a user's own images."""

import base64
import json
import shutil

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import mnist_jax
from mnist_jax.config import load_config
from mnist_jax.data.source import SOURCES
from mnist_jax.errors import UserError
from mnist_jax.evaluate import evaluate_folder, evaluate_workdir
from mnist_jax.inference.endpoint import Endpoint, RequestError
from mnist_jax.inference.export import export
from mnist_jax.inference.predict import predict
from mnist_jax.inference.restored import RestoredModel
from mnist_jax.train import train


def own_config(raw_dir, data_dir, **fields):
    config = load_config(str(ROOT / 'configs' / 'image_folder.py'))
    config.dataset.raw_dir, config.dataset.data_dir = str(raw_dir), str(data_dir)
    config.batch_size, config.chunks, config.epochs = 16, 2, 2
    config.model.stages, config.model.hidden = ((8,), (8,)), (16,)
    with config.dataset.unlocked():
        config.dataset.update(fields)
    return config


def write_images(directory, per_class=30):
    """Writes colored images of 12 x 10 pixels whose classes are their colors."""
    rng = np.random.default_rng(0)
    for channel, name in enumerate(('red', 'green', 'blue')):
        (directory / name).mkdir(parents=True)
        for index in range(per_class):
            image = rng.integers(0, 100, (12, 10, 3), np.uint8)
            image[..., channel] += 120
            Image.fromarray(image).save(directory / name / f'{index:03}.png')
    return directory


def test_colored_images_are_trained_reported_predicted_and_exported(tmp_path, capsys):
    raw_dir, workdir = write_images(tmp_path / 'raw'), tmp_path / 'run'
    result = train(own_config(raw_dir, tmp_path / 'data'), workdir, report=True)
    assert result['count'] == 18 and result['accuracy'] == 1.0
    assert list(result['statistics']['by_class']) == ['blue', 'green', 'red']
    assert 'blue' in (workdir / 'report' / 'index.html').read_text()
    green = tmp_path / 'green.jpg'
    Image.new('RGB', (40, 30), (20, 200, 20)).save(green)
    shutil.rmtree(raw_dir)
    shutil.rmtree(tmp_path / 'data')
    # What follows needs neither the raw files nor the prepared data.
    capsys.readouterr()
    assert predict(workdir, [str(green)]) == 0
    assert 'green' in capsys.readouterr().out.splitlines()[2].split()[1]
    export(workdir, step=None, onnx=False)
    # IDX files have gray levels, which are framed like those of other images, also next to these.
    (tmp_path / 'gray.idx').write_bytes(b'\0\0\x08\x03' + np.array([2, 12, 10], '>i4').tobytes() + bytes(range(240)))
    capsys.readouterr()
    assert predict(workdir, [str(green), str(tmp_path / 'gray.idx')]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 3
    model = RestoredModel.load(workdir)
    image, description = model.read_image(green)
    assert image.shape == (12, 10, 3) and description == 'from 30 x 40 (resize)'
    assert model.class_names[int(model.predict(image[None]).argmax())] == 'green'
    assert model.frame(np.full((12, 10), 7.0)).image.tolist() == np.full((12, 10, 3), 7).tolist()
    request = json.dumps({'image': np.asarray(Image.open(green)).tolist(), 'feature_maps': True})
    answer = Endpoint(model).answer(request.encode())
    assert answer['class'] == 'green' and answer['prepared'] == 'from 30 x 40 (resize)'
    planes = np.frombuffer(base64.b64decode(answer['image']['pixels']), np.uint8).reshape(3, 12, 10)
    assert np.array_equal(planes.transpose(1, 2, 0), image)
    with pytest.raises(UserError, match=r'config.dataset.raw_dir must exist'):
        train(own_config(raw_dir, tmp_path / 'data'), workdir)


def test_nearly_black_images_are_predicted_and_evaluated(tmp_path):
    raw_dir, workdir = write_images(tmp_path / 'raw'), tmp_path / 'run'
    train(own_config(raw_dir, tmp_path / 'data'), workdir)
    dark = np.ones((12, 10, 3), np.uint8)
    Image.fromarray(dark).save(tmp_path / 'dark.png')
    (tmp_path / 'dark' / 'blue').mkdir(parents=True)
    Image.fromarray(dark).save(tmp_path / 'dark' / 'blue' / 'dark.png')
    assert predict(workdir, [str(tmp_path / 'dark.png')]) == 0
    assert evaluate_folder(workdir, tmp_path / 'dark')['count'] == 1
    # Numbers that someone passes may be scaled to 0 to 1.
    with pytest.raises(UserError, match='seem to be scaled already'):
        mnist_jax.load(workdir).predict(dark[None])
    with pytest.raises(RequestError, match='seem to be scaled already') as error:
        Endpoint(RestoredModel.load(workdir)).answer(json.dumps({'image': dark.tolist()}).encode())
    assert error.value.status == 422


def test_own_images_by_class_are_evaluated(tmp_path, trained, capsys, monkeypatch):
    """Without the dataset; the same images as a split have the same predictions."""
    raw_dir, workdir = write_images(tmp_path / 'raw'), tmp_path / 'run'
    config = own_config(raw_dir, tmp_path / 'data')
    train(config, workdir)
    expected = evaluate_workdir(workdir, split='train+test')
    result = evaluate_folder(workdir, raw_dir)
    assert result['confusion_matrix'] == expected['confusion_matrix'] and result['count'] == 90
    assert result['cross_entropy'] == pytest.approx(expected['cross_entropy'], rel=1e-5)
    assert result['params_sha256'] == expected['params_sha256']
    assert (workdir / 'eval-input-raw.json').exists() and 'top 3' not in capsys.readouterr().out
    before = (workdir / 'eval.json').read_bytes()
    monkeypatch.chdir(raw_dir)
    assert evaluate_folder(workdir, '.')['split'] == 'raw' and (workdir / 'eval.json').read_bytes() == before
    (raw_dir / 'purple').mkdir()
    with pytest.raises(UserError, match=r"must be named after the classes blue, green, red, got 'purple'"):
        evaluate_folder(workdir, raw_dir)
    with pytest.raises(UserError, match=r'--input must be a directory'):
        evaluate_folder(workdir, raw_dir / 'red' / '000.png')
    (raw_dir / 'purple').rmdir()
    (raw_dir / 'red' / '000.png').write_bytes(b'broken')
    with pytest.raises(UserError, match=r'000.png'):
        evaluate_folder(workdir, raw_dir)
    digits = tmp_path / 'digits'
    (digits / '7').mkdir(parents=True)
    Image.new('L', (28, 28)).save(digits / '7' / 'blank.png')
    with pytest.raises(UserError, match=r'blank'):
        evaluate_folder(shutil.copytree(trained, tmp_path / 'mnist'), digits)


def test_two_classes_are_predicted_and_patterns_need_no_quotes(tmp_path, forked):
    raw_dir = write_images(tmp_path / 'raw', per_class=8)
    shutil.rmtree(raw_dir / 'blue')
    command = ('--config=configs/image_folder.py', f'--config.dataset.raw_dir={raw_dir}', '--config.batch_size=4')
    command += (f'--config.dataset.data_dir={tmp_path / "data"}', '--config.epochs=1', '--noreport')
    assert forked(*command, f'--workdir={tmp_path / "first"}').returncode == 0
    second = forked(
        *command,
        f'--workdir={tmp_path / "second"}',
        f'--config.init.workdir={tmp_path / "first"}',
        '--config.init.freeze=Conv_0,Dense_*',
    )
    assert second.returncode == 0, second.stderr
    prediction = forked('--mode=predict', f'--workdir={tmp_path / "second"}', f'--input={raw_dir}')
    assert prediction.returncode == 0, prediction.stderr
    header, _, *rows = prediction.stdout.splitlines()
    assert header.split() == ['image', 'class', 'probability', 'next', 'prepared'] and len(rows) == 16


def test_a_run_resumes_only_with_the_same_images(tmp_path):
    raw_dir, workdir = write_images(tmp_path / 'raw'), tmp_path / 'run'
    config = own_config(raw_dir, tmp_path / 'data')
    train(config, workdir)
    Image.new('RGB', (10, 12), 'red').save(raw_dir / 'red' / 'another.png')
    with pytest.raises(UserError, match='the dataset must be the one that the run'):
        train(config, workdir)


def test_a_folder_and_idx_files_of_the_same_images_give_the_same_parameters(tmp_path, data_dir):
    split = SOURCES['mnist'](data_dir, '', 'train[:200]', '', 'test[:50]')
    for name in ('train', 'test'):
        examples = split.split(name)
        for index, (image, label) in enumerate(zip(examples.image, examples.label, strict=True)):
            path = tmp_path / 'raw' / name / str(label) / f'{index:05}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[..., 0]).save(path)
    config = own_config(tmp_path / 'raw', tmp_path / 'data')
    digests = [train(config, tmp_path / 'folder')['params_sha256']]
    mnist = load_config(str(ROOT / 'configs' / 'cnn.py'))
    mnist.update({name: config[name] for name in ('batch_size', 'chunks', 'epochs')})
    mnist.model, mnist.early_stopping = config.model, config.early_stopping
    mnist.dataset.data_dir, mnist.dataset.validation_fraction = data_dir, 0.1
    mnist.dataset.train, mnist.dataset.test = 'train[:200]', 'test[:50]'
    digests.append(train(mnist, tmp_path / 'mnist')['params_sha256'])
    assert digests[0] == digests[1]


def test_a_damaged_description_is_one_line(tmp_path):
    raw_dir, workdir = write_images(tmp_path / 'raw', per_class=8), tmp_path / 'run'
    config = own_config(raw_dir, tmp_path / 'data')
    config.epochs = 1
    train(config, workdir)
    description = json.loads((workdir / 'dataset.json').read_text())
    digests = (workdir / 'digests.json').read_text()
    for change, message in (
        ({'max_pixel': 128}, 'its SHA-256 is not the one in digests.json'),
        ({'class_names': []}, 'image_shape, class_names or max_pixel is invalid'),
        ({'image_shape': [8, 8]}, 'image_shape, class_names or max_pixel is invalid'),
        ({'mean': [0.5]}, 'mean or deviation is invalid'),
    ):
        (workdir / 'dataset.json').write_text(json.dumps({**description, **change}))
        if 'max_pixel' not in change:  # as in the workdirs of older versions
            old = {name: value for name, value in json.loads(digests).items() if name != 'description'}
            (workdir / 'digests.json').write_text(json.dumps(old))
        with pytest.raises(UserError, match=rf"dataset.json' is damaged: .*{message}"):
            RestoredModel.load(workdir)
    (workdir / 'dataset.json').write_text('{"image_shape": [1]}')
    with pytest.raises(UserError, match=r"dataset.json' is damaged: it must be the description of a dataset"):
        RestoredModel.load(workdir)
    train(config, workdir)  # rewrites it
    assert RestoredModel.load(workdir).class_names == ('blue', 'green', 'red')
