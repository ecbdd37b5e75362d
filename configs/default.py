"""Declares every config field with its default. An experiment's config starts from this one and overrides a few."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Returns the defaults: the CNN on MNIST."""
    config = ConfigDict()
    config.seed = 0  # seed of the initial parameters, the shuffle, the augmentation and the dropout
    config.epochs = 10  # passes over the training split
    config.batch_size = 128  # examples per update, over all devices
    config.eval_batch_size = 256  # examples per evaluation step, over all devices
    config.devices = 0  # devices per process; 0: all accelerators, or one CPU device that uses every core
    # The batch is cut into this many chunks, whose gradients are added in a fixed order. At most this many devices can
    # share the work; 1, 2, 4, ... devices give the same bits.
    config.chunks = 8

    # Updates per call of the compiled program, at most an epoch; 0: automatic.
    config.steps_per_call = 0
    config.dtype = 'float32'  # compute dtype: 'float32' or 'bfloat16'; parameters are float32
    # On an accelerator, True: full float32 products and deterministic kernels; False: faster, results may differ.
    config.deterministic = True

    config.population = 0  # number of runs that differ in the seed, trained at the same time; 0: one run
    config.folds = 0  # number of cross-validation folds; 0: no cross-validation
    config.fold = 0  # the fold to train, from 1; 0: all, each in its own directory

    config.checkpoint_every_steps = 0  # in addition to the checkpoint after each epoch; 0: never
    config.checkpoint_every_minutes = 0.0  # in addition to the checkpoint after each epoch; 0: never
    # Short epochs: an epoch that ends sooner than this after the last checkpoint saves none, unless it is the best one.
    config.checkpoint_min_seconds = 1.0
    config.on_nonfinite = 'stop'  # at a non-finite loss or update: 'stop' training, or 'skip' the update and count it

    # Trace this many updates with JAX's profiler, after the first calls; the trace and a table of the operations that
    # took the most time are in WORKDIR/profile. 0: none.
    config.profile_steps = 0
    config.trackers = ('tensorboard',)  # where metrics and results are written too: names in trackers.TRACKERS

    loss = ConfigDict()
    loss.name = 'cross_entropy'  # one of losses.LOSSES; further fields are its arguments
    loss.label_smoothing = 0.0  # fraction of the target to spread evenly over all classes
    config.loss = loss

    schedule = ConfigDict()
    schedule.name = 'constant'  # one of schedules.SCHEDULES; further fields are its arguments
    config.schedule = schedule

    # Random changes of the training images: dicts with a name in augmentation.AUGMENTATIONS, its arguments and a
    # probability (by default 1), such as ({'name': 'shift', 'pixels': 2}, {'name': 'flip'}).
    config.augmentation = ()

    average = ConfigDict()
    average.name = 'none'  # one of averaging.AVERAGES; further fields are its arguments
    average.evaluated = 'average'  # what is evaluated and exported if there is an average: 'average' or 'last'
    config.average = average

    distillation = ConfigDict()
    distillation.workdirs = ()  # runs whose mean probabilities are targets too; (): none
    distillation.weight = 0.7  # weight of the loss on these targets; the loss on the labels has the rest
    distillation.temperature = 2.0  # divides the logits of the run and of its teachers in the loss on these targets
    config.distillation = distillation

    config.dataset = _dataset()
    config.init = _init()
    config.early_stopping = _early_stopping()
    config.reduce_lr = _reduce_lr()

    model = ConfigDict()
    model.name = 'cnn'  # one of architectures.MODELS; further fields are its attributes
    model.stages = ((32,), (64,))  # features of each convolution, stage by stage
    model.kernel = 3  # height and width of the kernels, in pixels
    model.padding = 'same'  # padding of convolutions and pooling: 'same' or 'valid'
    model.pool = (2, 2)  # window size and stride of the max pooling after each stage, in pixels; 1: no pooling
    model.batch_norm = False  # whether batch normalization follows each convolution
    model.stage_dropout = ()  # dropout rate after each stage; (): none
    model.hidden = (64, 64)  # widths of the hidden dense layers
    model.dropout = ()  # dropout rate after each hidden dense layer; (): none
    config.model = model

    optimizer = ConfigDict()
    optimizer.name = 'rmsprop'  # one of optimizers.OPTIMIZERS; the fields after accumulate are its arguments
    optimizer.learning_rate = 1e-3  # the schedule multiplies it
    optimizer.clip_norm = 0.0  # largest norm of the gradient over all parameters; 0: no limit
    optimizer.clip_value = 0.0  # largest absolute value of an element of the gradient; 0: no limit
    optimizer.sam_radius = 0.0  # radius of sharpness-aware minimization, which takes two gradients per update; 0: none
    optimizer.accumulate = 1  # number of batches whose mean gradient makes one update of the parameters
    optimizer.rho = 0.9  # decay of the moving average of squared gradients
    optimizer.epsilon = 1e-7  # added to this average inside the square root
    config.optimizer = optimizer
    return config.lock()


def _dataset() -> ConfigDict:
    """Returns the fields that select the data."""
    dataset = ConfigDict()
    dataset.name = 'mnist'  # one of data.source.SOURCES
    dataset.data_dir = ''  # directory of the prepared data; '': the TFDS default, ~/tensorflow_datasets
    dataset.raw_dir = ''  # the raw files: a directory or a file; see docs/data.md; '': bundled, or downloaded
    dataset.train = 'train'  # a split in TFDS's slicing notation, such as 'train[:90%]'
    dataset.validation = ''  # the validation split in the same notation; '': none
    dataset.test = 'test'  # the test split in the same notation
    dataset.validation_fraction = 0.0  # fraction of `train` to draw at random for validation; 0: none
    # Pixels: 'unit': divided by the largest value; 'standard': also minus the mean of each channel of the training
    # split, and divided by its standard deviation; 'none': as they are.
    dataset.normalize = 'unit'
    # How classes of unequal sizes are balanced: 'none'; 'loss': the loss of an example is divided by the size of its
    # class, with a mean weight of 1; 'sampling': an epoch has equally many examples of each class.
    dataset.balance = 'none'
    dataset.class_weights = ()  # factors of the loss of each class; (): all 1
    dataset.in_memory = True  # False: the examples stay on disk and are prefetched
    # Keep the examples in device memory: 'on', 'off', or 'auto': on accelerators, if they fit.
    dataset.on_device = 'auto'
    dataset.split_seed = 0  # seed of the random splits: validation_fraction, the folds, drawn test splits
    return dataset


def _init() -> ConfigDict:
    """Returns the fields that make a run start from another one; --mode=summary lists paths such as 'Conv_0'."""
    init = ConfigDict()
    init.workdir = ''  # the run to start from: what fits its parameters and batch statistics is taken; '': none
    init.step = ''  # its checkpoint: 'best', 'latest' or a step; '': the one that it ended with
    init.skip = ()  # patterns of paths that are new although they fit, such as ('Dense_1',)
    init.freeze = ()  # patterns of paths that keep their values, such as ('Conv_*',)
    init.layer_decay = 1.0  # factor of the learning rate from each layer to the one below it; the last layer has 1
    init.rates = ()  # pairs of a pattern and a factor of the learning rate, such as (('Conv_*', 0.1),)
    return init


def _early_stopping() -> ConfigDict:
    """Returns the fields that decide which epoch is best and when to stop."""
    early_stopping = ConfigDict()
    early_stopping.monitor = 'validation_accuracy'  # the metric; the checkpoint of its best epoch is kept
    early_stopping.mode = 'auto'  # which value is best, 'min' or 'max'; 'auto': 'min' for a loss, 'max' for all others
    early_stopping.min_delta = 0.0  # minimum change that counts as an improvement
    early_stopping.patience = 0  # epochs without an improvement before training stops; 0: never stops
    early_stopping.restore_best = False  # whether the run ends with the parameters of the best epoch
    return early_stopping


def _reduce_lr() -> ConfigDict:
    """Returns the fields that decide when to reduce the learning rate."""
    reduce_lr = ConfigDict()
    reduce_lr.monitor = 'validation_loss'
    reduce_lr.mode = 'auto'
    reduce_lr.min_delta = 1e-4
    reduce_lr.patience = 0  # epochs without an improvement before a reduction; 0: never reduces
    reduce_lr.factor = 0.1  # multiplies the learning rate at each reduction
    reduce_lr.cooldown = 0  # epochs to wait after a reduction before counting again
    reduce_lr.min_lr = 0.0  # lower bound on the learning rate
    return reduce_lr
