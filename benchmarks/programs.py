"""The same training in this project, in Keras on TensorFlow and in PyTorch, each in a process that waits for orders.

    python benchmarks/programs.py PROGRAM TASK.json     # throughput.py starts it, and tells it when to do what

TASK.json holds {name, config, model, optimizer, loss, batch_size, eval_batch_size, data}; `data` is an .npz file with
`image`, uint8 NxHxWxC, and `label`. An order is a line on standard input, `train COUNT` or `eval COUNT`: so many steps
are made, and the seconds that they took are printed as a line of JSON.
"""

import itertools
import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent


class Ours:
    """This project, by the steps and batches that its training loop runs."""

    def __init__(self, task):
        sys.path.insert(0, str(ROOT))
        import jax

        from mnist_jax.config import load_config
        from mnist_jax.training.evaluation import batch_results
        from mnist_jax.training.experiment import make_experiment

        self.batch_results = batch_results
        config = load_config(str(ROOT / task['config']))
        config.dataset.name = task['dataset']
        config.dataset.validation_fraction = 0.0
        config.dataset.train, config.dataset.validation, config.dataset.test = 'train', '', 'test'
        config.early_stopping.patience = config.reduce_lr.patience = 0
        config.early_stopping.restore_best = False
        self.experiment = make_experiment(config)
        self.state = self.experiment.replicas.replicate(self.experiment.create_state())
        self.version = f'jax {jax.__version__}, {self.experiment.replicas}'
        self.epoch, self.batches = 0, iter(())

    def _batch(self):
        batch = next(self.batches, None)
        if batch is None:
            self.batches = iter(self.experiment.train_batches(self.epoch))
            self.epoch += 1
            batch = next(self.batches)
        return batch

    def train(self, count):
        """As loop.py does it: the sums of a step are fetched when the next one is on its way."""
        pending, done, began = None, 0, time.perf_counter()
        while done < count:
            self.state, sums = self.experiment.train_step(self.state, self._batch())
            if pending is not None:
                np.asarray(pending['loss'])
            pending = sums
            done += sums['loss'].size  # A call makes one step or several.
        np.asarray(pending['loss'])
        return (time.perf_counter() - began) * count / done

    def eval(self, count):
        """As evaluate.py does it."""
        split = self.experiment.source.split('test')
        while count > 0:
            for _ in itertools.islice(self.batch_results(self.experiment, self.state, split), count):
                count -= 1


class Keras:
    """Keras's own loop, `fit` and `evaluate`, on arrays in memory."""

    def __init__(self, task):
        import keras
        import tensorflow

        self.version = f'Keras {keras.__version__} on TensorFlow {tensorflow.__version__}'
        data = np.load(task['data'])
        self.image = data['image'].astype(np.float32) / data['image'].max()
        self.label = data['label'].astype(np.int64)
        self.task = task
        fields = dict(task['optimizer'])
        kind = {'rmsprop': keras.optimizers.RMSprop, 'adam': keras.optimizers.Adam}
        optimizer = {**kind, 'adadelta': keras.optimizers.Adadelta}[fields.pop('name')](**fields)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if task['loss']['name'] == 'mean_squared_error':
            self.label, loss = np.eye(10, dtype=np.float32)[self.label], 'mean_squared_error'
        self.model = self._model(keras, task)
        self.model.compile(optimizer=optimizer, loss=loss, metrics=['accuracy'])

    def _model(self, keras, task):
        model = keras.Sequential([keras.layers.Input(self.image.shape[1:])])
        spec = task['model']
        for stage, pool, rate in zip_stages(spec):
            for features in stage:
                model.add(keras.layers.Conv2D(features, spec['kernel'], padding=spec['padding']))
                if spec['batch_norm']:
                    model.add(keras.layers.BatchNormalization())
                model.add(keras.layers.ReLU())
            if pool > 1:
                model.add(keras.layers.MaxPooling2D(pool, padding=spec['padding']))
            if rate:
                model.add(keras.layers.Dropout(rate))
        model.add(keras.layers.Flatten())
        for width, rate in zip_hidden(spec):
            model.add(keras.layers.Dense(width, activation='relu'))
            if rate:
                model.add(keras.layers.Dropout(rate))
        softmax = task['loss']['name'] == 'mean_squared_error'
        model.add(keras.layers.Dense(10, activation='softmax' if softmax else None))
        return model

    def _arrays(self, count, batch_size):
        rows = np.arange(count * batch_size) % len(self.image)
        return self.image[rows], self.label[rows]

    def train(self, count):
        """One call of `fit` over so many batches; the arrays are made before the clock starts."""
        size = self.task['batch_size']
        image, label = self._arrays(count, size)
        began = time.perf_counter()
        self.model.fit(image, label, batch_size=size, epochs=1, verbose=0)
        return time.perf_counter() - began

    def eval(self, count):
        """One call of `evaluate`."""
        size = self.task['eval_batch_size']
        image, label = self._arrays(count, size)
        began = time.perf_counter()
        self.model.evaluate(image, label, batch_size=size, verbose=0)
        return time.perf_counter() - began


class Torch:
    """PyTorch as its documentation recommends it for the CPU: channels-last, a plain loop over shuffled tensors."""

    compiled = False

    def __init__(self, task):
        import torch

        self.torch = torch
        self.version = f'PyTorch {torch.__version__}' + ', torch.compile' * self.compiled
        data = np.load(task['data'])
        image = data['image'].astype(np.float32) / data['image'].max()
        self.image = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        self.label = torch.from_numpy(data['label'].astype(np.int64))
        self.task = task
        self.model = self._model(torch, task).to(memory_format=torch.channels_last)
        fields = dict(task['optimizer'])
        if 'beta_1' in fields:
            fields['betas'] = (fields.pop('beta_1'), fields.pop('beta_2'))
        names = {'learning_rate': 'lr', 'epsilon': 'eps'}
        kind = {'rmsprop': torch.optim.RMSprop, 'adam': torch.optim.Adam, 'adadelta': torch.optim.Adadelta}
        optimizer = kind[fields.pop('name')]
        if optimizer is torch.optim.RMSprop:
            names['rho'] = 'alpha'
        self.optimizer = optimizer(
            self.model.parameters(), **{names.get(name, name): value for name, value in fields.items()}
        )
        self.loss = self._mse if task['loss']['name'] == 'mean_squared_error' else torch.nn.functional.cross_entropy
        self.forward = torch.compile(self.model) if self.compiled else self.model

    def _mse(self, logits, label):
        functional = self.torch.nn.functional
        return functional.mse_loss(logits.softmax(-1), functional.one_hot(label, 10).float())

    def _model(self, torch, task):
        spec, layers = task['model'], []
        for stage, pool, rate in zip_stages(spec):
            for features in stage:
                layers.append(torch.nn.LazyConv2d(features, spec['kernel'], padding=spec['padding']))
                if spec['batch_norm']:
                    layers.append(torch.nn.LazyBatchNorm2d(eps=1e-3, momentum=0.01))
                layers.append(torch.nn.ReLU())
            if pool > 1:
                layers.append(torch.nn.MaxPool2d(pool, ceil_mode=spec['padding'] == 'same'))
            if rate:
                layers.append(torch.nn.Dropout(rate))
        layers.append(torch.nn.Flatten())
        for width, rate in zip_hidden(spec):
            layers += [torch.nn.LazyLinear(width), torch.nn.ReLU()]
            if rate:
                layers.append(torch.nn.Dropout(rate))
        model = torch.nn.Sequential(*layers, torch.nn.LazyLinear(10))
        model(self.image[:2])
        return model

    def _rows(self, count, size):
        """Shuffled, as many epochs as it takes."""
        done = 0
        while True:
            order = self.torch.randperm(len(self.image))
            for start in range(0, len(order) - size + 1, size):
                if done == count:
                    return
                done += 1
                yield order[start : start + size]

    def train(self, count):
        """A plain loop; loss and accuracy are added up without leaving the tensors, as Keras and this project do."""
        self.model.train()
        total = correct = 0
        for rows in self._rows(count, self.task['batch_size']):
            image, label = self.image[rows], self.label[rows]
            self.optimizer.zero_grad()
            logits = self.forward(image)
            loss = self.loss(logits, label)
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
            correct += (logits.argmax(-1) == label).sum()

    def eval(self, count):
        """Inference without gradients."""
        self.model.eval()
        total = correct = 0
        with self.torch.inference_mode():
            for rows in self._rows(count, self.task['eval_batch_size']):
                logits = self.forward(self.image[rows])
                total += self.loss(logits, self.label[rows])
                correct += (logits.argmax(-1) == self.label[rows]).sum()


class TorchCompiled(Torch):
    """The same, compiled."""

    compiled = True


def zip_stages(spec):
    """(features of the convolutions, pool, dropout rate) of each stage; none for an MLP."""
    stages = spec.get('stages', ())
    return list(zip(stages, spec.get('pool', ()), spec.get('stage_dropout') or [0] * len(stages), strict=True))


def zip_hidden(spec):
    """(width, dropout rate) of each hidden dense layer."""
    return list(zip(spec['hidden'], spec['dropout'] or [0] * len(spec['hidden']), strict=True))


PROGRAMS = {'ours': Ours, 'keras': Keras, 'torch': Torch, 'torch.compile': TorchCompiled}


def main():
    """Build, make a first step, and follow orders."""
    program = PROGRAMS[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
    program.train(1)
    print(json.dumps({'version': program.version}), flush=True)
    for line in sys.stdin:
        what, count = line.split()
        began = time.perf_counter()
        seconds = getattr(program, what)(int(count)) or time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({'seconds': seconds, 'peak_bytes': peak}), flush=True)


if __name__ == '__main__':
    main()
