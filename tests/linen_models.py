"""Models of Linen's own layers, for tests."""

import flax.linen as nn


class ResidualCNN(nn.Module):
    num_classes: int = 3
    dropout: type = nn.Dropout

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        x = nn.Conv(8, (3, 3), strides=2)(image_BxHxWxC)
        residual = nn.gelu(nn.BatchNorm(use_running_average=training is None, momentum=0.9)(x))
        residual = self.dropout(0.2, deterministic=training is None)(nn.Conv(8, (3, 3))(residual))
        x = nn.GroupNorm(num_groups=4)(x + residual)
        x = nn.BatchNorm(training is None, use_fast_variance=False, use_scale=False)(x)
        x_BxC = nn.BatchNorm(axis=-1, use_bias=False)(x.mean((1, 2)), use_running_average=training is None)
        return nn.Dense(self.num_classes)(self.dropout(0.3, broadcast_dims=(1,))(x_BxC, deterministic=training is None))


class Block(nn.Module):
    dropout: type

    @nn.compact
    def __call__(self, x_BxTxF, deterministic):
        attention = nn.MultiHeadDotProductAttention(num_heads=2, dropout_rate=0.25)
        y = attention(nn.LayerNorm()(x_BxTxF), deterministic=deterministic)
        x_BxTxF = x_BxTxF + self.dropout(0.1, deterministic=deterministic)(y)
        y = nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x_BxTxF))))
        return x_BxTxF + self.dropout(0.1, deterministic=deterministic)(y)


class VisionTransformer(nn.Module):
    num_classes: int = 3
    dropout: type = nn.Dropout

    @nn.compact
    def __call__(self, image_BxHxWxC, training=None):
        patches = nn.Conv(16, (7, 7), strides=7, padding='VALID')(image_BxHxWxC)
        positions = self.param('positions', nn.initializers.normal(0.02), (1, 16, 16))
        # All examples share the mask of the position embeddings.
        positions = nn.Dropout(0.2, deterministic=training is None)(positions)
        x_BxTxF = patches.reshape(len(patches), -1, 16) + positions
        x_BxTxF = Block(self.dropout)(x_BxTxF, training is None)
        return nn.Dense(self.num_classes)(nn.LayerNorm()(x_BxTxF).mean(1))
