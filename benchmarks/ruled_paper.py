"""Counts how many digits on ruled paper a trained model reads correctly.

    .venv/bin/python benchmarks/ruled_paper.py --workdir=runs/cnn --seed=1

The pictures are those of tests/ruled_papers.py: for each kind of paper, examples of the test split of MNIST, and digits
in four fonts. Prints a line per kind of paper and source of the digits: the number of pictures; how many of the digits
are read correctly; the same for the pictures without lines; how many of the wrong predictions have a remark; and the
time per image.
"""

import argparse
import sys
import time
from pathlib import Path

import flags
import numpy as np

from mnist_jax.errors import UserError
from mnist_jax.inference.restored import RestoredModel

TESTS = Path(__file__).parent.parent / 'tests'
REMARK = '(expected'  # part of each remark that something is wrong with a picture


def main():
    """Draws, predicts and counts."""
    sys.path.insert(0, str(TESTS))
    from digit_images import read_mnist_test
    from ruled_papers import KINDS, draw_on_paper

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', default='runs/cnn', help='the directory of the run')
    parser.add_argument('--seed', type=int, default=1, help='the seed of the pictures')
    parser.add_argument('--count', type=flags.at_least(1), default=100, help='the number of pictures per line')
    arguments = parser.parse_args()
    try:
        model = RestoredModel.load(arguments.workdir)
    except UserError as error:
        parser.error(str(error))
    images, labels = read_mnist_test()
    digits = np.arange(arguments.count) % 10

    def read(pictures):
        """Returns whether each digit is read correctly, and whether it has a remark."""
        framed = [model.frame(np.asarray(picture.convert('L'), np.float32)) for picture in pictures]
        classes = model.predict([image for image, _ in framed]).argmax(-1)
        return classes == digits, np.array([REMARK in description for _, description in framed])

    print(f'{"paper":10} {"digits":6} {"of":>5} {"right":>5} {"plain":>5} {"wrong, with remark":>18} {"ms":>5}')
    for number, kind in enumerate(KINDS):
        for source in ('MNIST', 'fonts'):
            rng = np.random.default_rng([arguments.seed, number, source == 'fonts'])
            pairs = [
                draw_on_paper(kind, digit, rng, images[labels == digit] if source == 'MNIST' else None)
                for digit in digits
            ]
            ruled, plain = zip(*pairs, strict=True)
            start = time.perf_counter()
            right, remark = read(ruled)
            milliseconds = 1000 * (time.perf_counter() - start) / len(digits)
            counts = f'{len(digits):5} {right.sum():5} {read(plain)[0].sum():5} {(~right & remark).sum():18}'
            print(f'{kind:10} {source:6} {counts} {milliseconds:5.0f}', flush=True)


if __name__ == '__main__':
    main()
