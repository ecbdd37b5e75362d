"""Every field that exists. An experiment's config starts from this one and overrides a few."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults: the CNN on MNIST."""
    config = ConfigDict()
    config.seed = 0  # of the initial parameters, the order of the examples and the dropout
    config.epochs = 10  # passes over the training split
    config.batch_size = 128  # examples an update, over all devices
    config.eval_batch_size = 256  # examples a step of the evaluation, over all devices
    config.devices = 0  # how many compute; 0: an accelerator's all, or one a CPU core where the model gains by it
    config.chunks = 8  # parts of a batch, added in a fixed order: 1, 2, 4, ... up to so many devices give the same bits

    loss = ConfigDict()
    loss.name = 'cross_entropy'  # losses.LOSSES; the other fields are the arguments of that function
    loss.label_smoothing = 0.0  # share of the target that is spread evenly over all classes
    config.loss = loss

    schedule = ConfigDict()
    schedule.name = 'constant'  # schedules.SCHEDULES; the other fields are the arguments of that function
    config.schedule = schedule

    dataset = ConfigDict()
    dataset.name = 'mnist'  # data.builders.BUILDERS
    dataset.data_dir = ''  # where prepared data lives; '': TFDS's own choice, ~/tensorflow_datasets
    dataset.raw_dir = ''  # where the raw files lie; '': with this package, or downloaded
    dataset.train = 'train'  # the splits, in TFDS's slicing: 'train[:90%]'
    dataset.validation = ''  # '': none
    dataset.test = 'test'
    config.dataset = dataset

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
