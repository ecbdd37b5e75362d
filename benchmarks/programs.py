"""The same model and recipe in mnist_jax and in other programs, each as a process that trains and evaluates on request.

    python benchmarks/programs.py PROGRAM TASK.json

PROGRAM is one of `PROGRAMS`. `throughput.py` and `accelerator.py` start this script, once per program; there is no need
to run it by hand. TASK.json holds the fields of `Task`. A program uses a GPU if it sees one.

Prints one line of JSON with the versions of the libraries after the first step. Then reads requests from
standard input, one per line, `train COUNT` or `eval COUNT`: runs that many steps, and prints one line of JSON with the
seconds that they took and the peak memory of the process so far.
"""

import argparse
import importlib
import itertools
import json
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np

# The configs that all programs train in the same way: those of published experiments, and others, which are not
# written in Keras.
MODELS = ('mlp', 'cnn', 'fashion_cnn', 'convnet_valid', 'convnet_same', 'digits_cnn', 'kaggle_mlp', 'kaggle_cnn')
NEWER_MODELS = ('lenet5', 'resnet', 'depthwise', 'mixer', 'vit')


class Task(TypedDict):
    """What a program trains and evaluates; `model`, `optimizer` and `loss` are sections of the config."""

    config: str  # the config file of mnist_jax
    dataset: str  # its name in mnist_jax
    model: dict[str, Any]
    optimizer: dict[str, Any]
    loss: dict[str, Any]
    batch_size: int
    eval_batch_size: int
    chunks: int  # config.chunks of mnist_jax
    image_shape: tuple[int, ...]
    data: str  # path of an .npz file with `image`, uint8 NxHxWxC, and `label`, both of the training split


class Program(Protocol):
    """One of `PROGRAMS`."""

    version: str

    def __init__(self, task: Task): ...

    def train(self, count: int) -> float:
        """Runs `count` training steps; returns the seconds that they took."""

    def evaluate(self, count: int) -> float:
        """Evaluates `count` batches; returns the seconds that they took."""


class MnistJax:
    """mnist_jax, with the compiled steps and the batches of its own training loop."""

    fields: Mapping[str, Any] = {}

    def __init__(self, task: Task):
        import jax

        from mnist_jax.config import load_config
        from mnist_jax.distributed import stored_programs
        from mnist_jax.training.evaluation import batch_results
        from mnist_jax.training.experiment import make_experiment

        self._batch_results = batch_results
        stored_programs.enabled = True  # as for the command `python -m mnist_jax.main`
        config = load_config(task['config'])
        config.dataset.name = task['dataset']
        config.dataset.validation_fraction = 0.0
        config.dataset.train, config.dataset.validation, config.dataset.test = 'train', '', 'test'
        config.early_stopping.patience = config.reduce_lr.patience = 0
        config.early_stopping.restore_best = False
        config.chunks = task['chunks']
        config.update(self.fields)
        self._experiment = make_experiment(config)
        self._state = self._experiment.replicas.replicate(self._experiment.create_state())
        self.version = f'jax {jax.__version__}, {self._experiment.replicas}'
        epochs = map(self._experiment.train_calls, itertools.count())
        self._groups = itertools.chain.from_iterable(epochs)

    def train(self, count: int) -> float:
        """Trains as `training/loop.py` does: fetches the sums of a call after the next call has been dispatched."""
        previous, done, start = None, 0, time.perf_counter()
        while done < count:
            group = next(self._groups)
            self._state, sums = self._experiment.train_steps(self._state, group)
            if previous is not None:
                np.asarray(previous['loss'])
            previous = sums
            done += len(group)  # one step, or several
        if previous is not None:
            np.asarray(previous['loss'])
        return (time.perf_counter() - start) * count / done

    def evaluate(self, count: int) -> float:
        """Evaluates as `training/evaluation.py` does, repeating the test split as often as needed.

        Returns:
          The seconds for `count` full batches: the last batch of the split may be smaller, and is padded.
        """
        start = time.perf_counter()
        split, images, remaining = self._experiment.source.split('test'), 0, count
        while remaining > 0:
            results = self._batch_results(self._experiment, self._state.variables, split)
            for sums, _ in itertools.islice(results, remaining):
                remaining -= 1
                images += int(sums['count'])
        return (time.perf_counter() - start) * count * self._experiment.eval_batch_size / images


class MnistJaxFast(MnistJax):
    """mnist_jax with TF32 products and with kernels that are selected by their measured time."""

    fields = {'deterministic': False}


class MnistJaxBfloat16(MnistJax):
    """mnist_jax in bfloat16, with kernels that are selected by their measured time."""

    fields = {'deterministic': False, 'dtype': 'bfloat16'}


class Keras:
    """Keras's own loops, `fit` and `evaluate`, on arrays in memory."""

    backend = 'tensorflow'
    options: Mapping[str, Any] = {}

    def __init__(self, task: Task):
        os.environ['KERAS_BACKEND'] = self.backend
        import keras

        backend = importlib.import_module(self.backend)
        self.version = f'Keras {keras.__version__} on {self.backend} {backend.__version__}'
        self._task = task
        data = np.load(task['data'])
        self.image = data['image'].astype(np.float32) / data['image'].max()
        self.label = data['label'].astype(np.int64)
        options = dict(task['optimizer'])
        optimizers = {
            'rmsprop': keras.optimizers.RMSprop,
            'adam': keras.optimizers.Adam,
            'adamw': keras.optimizers.AdamW,
            'adadelta': keras.optimizers.Adadelta,
        }
        optimizer = optimizers[options.pop('name')](**options)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if task['loss']['name'] == 'mean_squared_error':
            self.label, loss = np.eye(10, dtype=np.float32)[self.label], 'mean_squared_error'
        self.model = self._make_model(keras)
        self.model.compile(optimizer=optimizer, loss=loss, metrics=['accuracy'], **self.options)

    def _make_model(self, keras: Any) -> Any:
        model = keras.Sequential([keras.layers.Input(self.image.shape[1:])])
        spec = self._task['model']
        if spec['name'] not in ('mlp', 'cnn'):
            raise NotImplementedError(f'only mlp and cnn are written in Keras, got {spec["name"]}')
        for features_by_layer, pool, dropout in stages(spec):
            for features in features_by_layer:
                model.add(keras.layers.Conv2D(features, spec['kernel'], padding=spec['padding']))
                if spec['batch_norm']:
                    model.add(keras.layers.BatchNormalization())
                model.add(keras.layers.ReLU())
            if pool > 1:
                model.add(keras.layers.MaxPooling2D(pool, padding=spec['padding']))
            if dropout:
                model.add(keras.layers.Dropout(dropout))
        model.add(keras.layers.Flatten())
        for width, dropout in hidden_layers(spec):
            model.add(keras.layers.Dense(width, activation='relu'))
            if dropout:
                model.add(keras.layers.Dropout(dropout))
        softmax = self._task['loss']['name'] == 'mean_squared_error'
        model.add(keras.layers.Dense(10, activation='softmax' if softmax else None))
        return model

    def _examples(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        indices = np.arange(count) % len(self.image)
        return self.image[indices], self.label[indices]

    def train(self, count: int) -> float:
        """Calls `fit` once, on at least `count` batches; creates the arrays before starting the clock.

        Epochs are at most as long as those of the training split, so that the memory does not grow with the speed.

        Returns:
          The seconds for `count` batches.
        """
        size = self._task['batch_size']
        batches = min(count, len(self.image) // size)
        epochs = math.ceil(count / batches)
        image, label = self._examples(batches * size)
        start = time.perf_counter()
        self.model.fit(image, label, batch_size=size, epochs=epochs, verbose=0)
        return (time.perf_counter() - start) * count / (epochs * batches)

    def evaluate(self, count: int) -> float:
        """Calls `evaluate` once, on `count` batches; creates the arrays before starting the clock."""
        size = self._task['eval_batch_size']
        image, label = self._examples(count * size)
        start = time.perf_counter()
        self.model.evaluate(image, label, batch_size=size, verbose=0)
        return time.perf_counter() - start


class KerasOnJax(Keras):
    """Keras on JAX, which runs several steps per call of the compiled program."""

    backend = 'jax'
    options = {'steps_per_execution': 32}


class Torch:
    """PyTorch as its documentation recommends: channels-last, in a plain loop over shuffled tensors on the device."""

    compiled = False
    compile_mode = 'reduce-overhead'  # on a GPU: with CUDA graphs of the forward and of the backward computation
    tf32 = False

    def __init__(self, task: Task):
        import torch

        self._torch = torch
        self._task = task
        self._device = 'cuda' if torch.cuda.is_available() else 'cpu'
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cudnn.benchmark = True  # selects kernels by their measured time
        self.version = f'PyTorch {torch.__version__}' + ', torch.compile' * self.compiled
        data = np.load(task['data'])
        image = data['image'].astype(np.float32) / data['image'].max()
        self.image = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        self.image = self.image.to(self._device)
        self.label = torch.from_numpy(data['label'].astype(np.int64)).to(self._device)
        self.model = self._make_model().to(memory_format=torch.channels_last)
        options = dict(task['optimizer'])
        optimizers = {
            'rmsprop': torch.optim.RMSprop,
            'adam': torch.optim.Adam,
            'adamw': torch.optim.AdamW,
            'adadelta': torch.optim.Adadelta,
        }
        optimizer = optimizers[options.pop('name')]
        if 'beta_1' in options:
            options['betas'] = (options.pop('beta_1'), options.pop('beta_2'))
        torch_names = {'learning_rate': 'lr', 'epsilon': 'eps'}
        if optimizer is torch.optim.RMSprop:
            torch_names['rho'] = 'alpha'
        self.optimizer = optimizer(
            self.model.parameters(), **{torch_names.get(name, name): value for name, value in options.items()}
        )
        is_mse = task['loss']['name'] == 'mean_squared_error'
        self._loss = self._mean_squared_error if is_mse else torch.nn.functional.cross_entropy
        mode = self.compile_mode if self._device == 'cuda' else 'default'
        # One program for training batches and one for evaluation batches, not one for batches of any size.
        self._forward = torch.compile(self.model, mode=mode, dynamic=False) if self.compiled else self.model

    def _mean_squared_error(self, logits: Any, label: Any) -> Any:
        functional = self._torch.nn.functional
        return functional.mse_loss(logits.softmax(-1), functional.one_hot(label, 10).float())

    def _make_model(self) -> Any:
        nn, spec = self._torch.nn, self._task['model']
        layers: list[Any] = []
        if spec['name'] not in ('mlp', 'cnn'):
            from torch_models import LAYERS

            return self._finish(LAYERS[spec['name']](spec, self._task['image_shape']))
        for features_by_layer, pool, dropout in stages(spec):
            for features in features_by_layer:
                layers.append(nn.LazyConv2d(features, spec['kernel'], padding=spec['padding']))
                if spec['batch_norm']:
                    layers.append(nn.LazyBatchNorm2d(eps=1e-3, momentum=0.01))
                layers.append(nn.ReLU())
            if pool > 1:
                layers.append(nn.MaxPool2d(pool, ceil_mode=spec['padding'] == 'same'))
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Flatten())
        for width, dropout in hidden_layers(spec):
            layers += [nn.LazyLinear(width), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        return self._finish(layers)

    def _finish(self, layers: list[Any]) -> Any:
        model = self._torch.nn.Sequential(*layers, self._torch.nn.LazyLinear(10)).to(self._device)
        model(self.image[:2])  # fixes the shapes of the lazy layers
        return model

    def export(self, path: Path, batch_size: int) -> None:
        """Writes the model for inference as an ONNX file."""
        self._torch.onnx.export(self.model.eval(), (self.image[:batch_size],), path, verbose=False)

    def _shuffled_indices(self, count: int, size: int) -> Iterator[Any]:
        """Yields the indices of `count` batches, from as many shuffled epochs as necessary."""
        done = 0
        while True:
            order = self._torch.randperm(len(self.image), device=self._device)
            for first in range(0, len(order) - size + 1, size):
                if done == count:
                    return
                done += 1
                yield order[first : first + size]

    def train(self, count: int) -> float:
        """Accumulates the loss and the accuracy in tensors, as Keras and mnist_jax do."""
        start = time.perf_counter()
        self.model.train()
        total_loss = correct = 0
        for indices in self._shuffled_indices(count, self._task['batch_size']):
            image, label = self.image[indices], self.label[indices]
            self.optimizer.zero_grad()
            logits = self._forward(image)
            loss = self._loss(logits, label)
            loss.backward()
            self.optimizer.step()
            total_loss += loss.detach()
            correct += (logits.argmax(-1) == label).sum()
        float(total_loss), int(correct)  # waits for the device
        return time.perf_counter() - start

    def evaluate(self, count: int) -> float:
        """Evaluates without gradients."""
        start = time.perf_counter()
        self.model.eval()
        total_loss = correct = 0
        size = self._task['eval_batch_size']
        batches = len(self.image) // size
        with self._torch.inference_mode():
            for number in range(count):
                rows = slice(number % batches * size, (number % batches + 1) * size)  # in order, without a copy
                label = self.label[rows]
                logits = self._forward(self.image[rows])
                total_loss += self._loss(logits, label)
                correct += (logits.argmax(-1) == label).sum()
        float(total_loss), int(correct)  # waits for the device
        return time.perf_counter() - start


class TorchTf32(Torch):
    """PyTorch with TF32 products."""

    tf32 = True


class TorchCompiled(Torch):
    """PyTorch with `torch.compile`; on a GPU with CUDA graphs and TF32 products."""

    compiled = tf32 = True


class TorchGraph(TorchCompiled):
    """PyTorch with a whole update (forward, backward, optimizer) as one CUDA graph, of compiled kernels with TF32.

    This is what https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture describes. Needs a GPU.
    """

    compile_mode = 'default'  # A graph cannot be captured within another one.

    def __init__(self, task: Task):
        super().__init__(task)
        torch, size = self._torch, task['batch_size']
        self.version += ', one CUDA graph per update'
        for group in self.optimizer.param_groups:
            group['capturable'] = True
        self.model.train()
        self._graph_image, self._graph_label = self.image[:size].clone(), self.label[:size].clone()
        self._sums = torch.zeros(2, device=self._device)  # of losses and of correct predictions
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # compiles, and allocates what the graph uses
                self._update()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad()
        with torch.cuda.graph(self._graph):
            self._update()

    def _update(self) -> None:
        self.optimizer.zero_grad()
        logits = self._forward(self._graph_image)
        loss = self._loss(logits, self._graph_label)
        loss.backward()
        self.optimizer.step()
        correct = (logits.argmax(-1) == self._graph_label).sum()
        self._sums += self._torch.stack([loss.detach(), correct.float()])

    def train(self, count: int) -> float:
        """Copies each batch to where the graph reads it, and replays the graph."""
        start = time.perf_counter()
        self._sums.zero_()
        for indices in self._shuffled_indices(count, self._task['batch_size']):
            self._torch.index_select(self.image, 0, indices, out=self._graph_image)
            self._torch.index_select(self.label, 0, indices, out=self._graph_label)
            self._graph.replay()
        self._sums.tolist()  # waits for the device
        return time.perf_counter() - start


class OnnxRuntime:
    """ONNX Runtime, which only evaluates: PyTorch's model, exported for batches of the size that it evaluates."""

    def __init__(self, task: Task):
        exported = Torch(task)
        self._size = task['eval_batch_size']
        self._is_mse = task['loss']['name'] == 'mean_squared_error'
        self._image = exported.image.contiguous().numpy()  # NCHW, as exported
        self._label = exported.label.numpy()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / 'model.onnx'
            exported.export(path, self._size)
            self.version, self._run = self._load(path)

    def _load(self, path: Path) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
        name = session.get_inputs()[0].name
        return f'ONNX Runtime {onnxruntime.__version__}', lambda image: session.run(None, {name: image})[0]

    def train(self, count: int) -> float:
        """Is not called: see `EVALUATION_ONLY`."""
        raise NotImplementedError

    def evaluate(self, count: int) -> float:
        """Evaluates consecutive batches, and sums the loss and the correct predictions in NumPy."""
        start = time.perf_counter()
        total_loss = correct = 0.0
        batches = len(self._image) // self._size
        for index in range(count):
            rows = slice(index % batches * self._size, (index % batches + 1) * self._size)
            logits, label = self._run(self._image[rows]), self._label[rows]
            shifted = logits - logits.max(-1, keepdims=True)
            log_softmax = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            if self._is_mse:
                total_loss += np.square(np.exp(log_softmax) - np.eye(10, dtype=np.float32)[label]).mean()
            else:
                total_loss -= log_softmax[np.arange(self._size), label].mean()
            correct += (logits.argmax(-1) == label).sum()
        return time.perf_counter() - start


class OpenVino(OnnxRuntime):
    """OpenVINO in float32, with all cores for one batch."""

    def _load(self, path: Path) -> tuple[str, Callable[[np.ndarray], np.ndarray]]:
        import openvino

        options = {'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': 'f32'}
        compiled = openvino.Core().compile_model(path, 'CPU', options)
        return f'OpenVINO {openvino.__version__.split("-")[0]}', lambda image: compiled(image)[0]


def stages(spec: dict[str, Any]) -> list[tuple[list[int], int, float]]:
    """Returns the features of the convolutions, the pool and the dropout rate of each stage; no stages for an MLP."""
    features = spec.get('stages', ())
    dropout = spec.get('stage_dropout') or [0] * len(features)
    return list(zip(features, spec.get('pool', ()), dropout, strict=True))


def hidden_layers(spec: dict[str, Any]) -> list[tuple[int, float]]:
    """Returns the width and the dropout rate of each hidden dense layer."""
    return list(zip(spec['hidden'], spec['dropout'] or [0] * len(spec['hidden']), strict=True))


PROGRAMS: dict[str, type[Program]] = {
    'ours': MnistJax,
    'ours.fast': MnistJaxFast,
    'ours.bfloat16': MnistJaxBfloat16,
    'keras': Keras,
    'keras.jax': KerasOnJax,
    'torch': Torch,
    'torch.tf32': TorchTf32,
    'torch.compile': TorchCompiled,
    'torch.graph': TorchGraph,
    'onnxruntime': OnnxRuntime,
    'openvino': OpenVino,
}
EVALUATION_ONLY = ('onnxruntime', 'openvino')


def peak_memory() -> int:
    """Returns the largest resident memory of this process so far, in bytes."""
    status = Path('/proc/self/status')
    if status.exists():  # Linux's `ru_maxrss` starts with the memory of the parent process.
        return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if 'VmHWM' in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def main() -> None:
    """Builds the program, runs a first training step, and answers requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('program', choices=PROGRAMS)
    parser.add_argument('task', type=Path, help='a JSON file with the fields of Task')
    options = parser.parse_args()
    program = PROGRAMS[options.program](json.loads(options.task.read_text()))
    if options.program in EVALUATION_ONLY:
        program.evaluate(1)
    else:
        program.train(1)
    print(json.dumps({'version': program.version}), flush=True)
    run: dict[str, Callable[[int], float]] = {'train': program.train, 'eval': program.evaluate}
    for line in sys.stdin:
        phase, count = line.split()
        seconds = run[phase](int(count))
        peak_bytes = peak_memory()
        print(json.dumps({'seconds': seconds, 'peak_bytes': peak_bytes}), flush=True)


if __name__ == '__main__':
    main()
