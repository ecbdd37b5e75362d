"""Small models of all architectures except `mlp`, with all kinds of layers."""

MODELS = {
    'cnn': {
        'stages': ((5,), (8,)),
        'hidden': (9,),
        'normalization': 'group',
        'activation': 'silu',
        'global_pool': True,
    },
    'lenet5': {'features': (3, 5), 'hidden': (9,)},
    'resnet': {
        'widths': (4, 8),
        'blocks': 1,
        'activation': 'leaky_relu',
        'squeeze_excitation': 2,
        'stochastic_depth': 0.4,
        'dropout': 0.1,
    },
    'depthwise': {'stem': 4, 'widths': (8, 19), 'strides': (1, 2), 'activation': 'gelu', 'normalization': 'layer'},
    'mixer': {'width': 12, 'depth': 1, 'token_hidden': 7, 'feature_hidden': 20, 'dropout': 0.2},
    'vit': {'width': 12, 'depth': 1, 'heads': 3, 'hidden': 20, 'dropout': 0.2},
}
