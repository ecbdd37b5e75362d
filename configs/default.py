"""Every field that exists. An experiment's config starts from this one and overrides a few."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: the CNN on MNIST."""
    config = ConfigDict()
    config.seed = 0  # of the initial parameters, the order of the examples and the dropout
    config.epochs = 10  # passes over the training split
    config.batch_size = 128  # examples an update, over all devices
    config.eval_batch_size = 256  # examples a step of the evaluation, over all devices
    config.devices = 0  # of each process; 0: an accelerator's all, or one on a CPU, for which all cores compute
    # Parts of a batch, added in a fixed order: 1, 2, 4 ... devices give the same bits, up to so many share the work.
    config.chunks = 8

    # Updates that a device makes in one go; 0: 32 on an accelerator and where steps are short, else 1.
    config.steps_per_call = 0
    config.dtype = 'float32'  # of the computation: 'float32' or 'bfloat16'; the parameters are float32

    # of cross-validation: so many runs, each validated with another part of `train`; 0: one run, no folds
    config.folds = 0
    config.fold = 0  # the one of them to train, from 1; 0: all, each in a directory of its own

    config.checkpoint_every_steps = 0  # beside the checkpoint after each epoch; 0: none
    config.checkpoint_every_minutes = 0.0  # likewise
    config.on_nonfinite = 'stop'  # at a loss or gradient that is not finite; 'skip': leave out and count that update

    loss = ConfigDict()
    loss.name = 'cross_entropy'  # losses.LOSSES; the other fields are the arguments of that function
    loss.label_smoothing = 0.0  # share of the target that is spread evenly over all classes
    config.loss = loss

    schedule = ConfigDict()
    schedule.name = 'constant'  # schedules.SCHEDULES; the other fields are the arguments of that function
    config.schedule = schedule

    config.dataset = _dataset()
    config.early_stopping = _early_stopping()
    config.reduce_lr = _reduce_lr()

    model = ConfigDict()
    model.name = 'cnn'  # models.MODELS; the other fields are the attributes of that class
    model.stages = ((32,), (64,))  # features of the convolutions, stage by stage
    model.kernel = 3  # height and width of the kernels, pixels
    model.padding = 'same'  # of convolutions and pools: 'same' or 'valid'
    model.pool = (2, 2)  # window and stride after each stage, pixels; 1: none
    model.batch_norm = False  # after each convolution
    model.stage_dropout = ()  # rate after each stage; (): none
    model.hidden = (64, 64)  # widths of the hidden dense layers
    model.dropout = ()  # rate after each hidden dense layer; (): none
    config.model = model

    optimizer = ConfigDict()
    optimizer.name = 'rmsprop'  # optim.OPTIMIZERS; the fields below the next are the arguments of that function
    optimizer.learning_rate = 1e-3  # which the schedule's factor multiplies
    optimizer.rho = 0.9  # decay of the moving mean of squared gradients
    optimizer.epsilon = 1e-7  # added to it under the root
    config.optimizer = optimizer
    return config.lock()


def _dataset() -> ConfigDict:
    """What to learn from."""
    dataset = ConfigDict()
    dataset.name = 'mnist'  # data.source.BUILDERS
    dataset.data_dir = ''  # where prepared data lives; '': TFDS's own choice, ~/tensorflow_datasets
    dataset.raw_dir = ''  # where the raw files lie; '': with this package, or downloaded
    dataset.train = 'train'  # the splits, in TFDS's slicing: 'train[:90%]'
    dataset.validation = ''  # '': none
    dataset.test = 'test'
    dataset.validation_fraction = 0.0  # share of `train` that is drawn at random for validation instead
    dataset.in_memory = True  # False: the examples stay on the disk, and are read ahead of their use
    dataset.split_seed = 0  # of what is drawn at random: this share, the folds, Kaggle's split
    return dataset


def _early_stopping() -> ConfigDict:
    """Which epoch is the best, and when to stop."""
    early_stopping = ConfigDict()
    early_stopping.monitor = 'validation_accuracy'  # the metric whose best epoch has its checkpoint kept
    early_stopping.mode = 'auto'  # whether the 'min' or the 'max' is best; 'auto': max for an accuracy
    early_stopping.min_delta = 0.0  # what is not better by more than this is not better
    early_stopping.patience = 0  # epochs that are not better before training stops; 0: never
    early_stopping.restore_best = False  # whether the run ends with the best epoch's parameters, not the last's
    return early_stopping


def _reduce_lr() -> ConfigDict:
    """When to lower the learning rate."""
    reduce_lr = ConfigDict()
    reduce_lr.monitor = 'validation_loss'
    reduce_lr.mode = 'auto'
    reduce_lr.min_delta = 1e-4
    reduce_lr.patience = 0  # epochs that are not better before the learning rate is multiplied; 0: never
    reduce_lr.factor = 0.1
    reduce_lr.cooldown = 0  # epochs after that which are not counted
    reduce_lr.min_lr = 0.0  # the learning rate is not reduced below
    return reduce_lr
