"""What the drawing page's endpoint answers: requests checked, images framed, predictions and feature maps."""

import base64
import http
import json
import threading
from typing import Any

import numpy as np

from mnist_jax.inference.restored import RestoredModel

MAX_SIDE = 256  # pixels of an image that is sent
MAX_MAPS = 16  # of each layer

SCHEMA = {
    '$schema': 'https://json-schema.org/draft/2020-12/schema',
    'title': 'What POST /predict takes',
    'type': 'object',
    'properties': {
        'image': {
            'description': 'Rows of greys from 0 to 255, all as long, light on dark or dark on light; it is scaled and '
            'centred as the images were that the model was trained on.',
            'type': 'array',
            'minItems': 1,
            'maxItems': MAX_SIDE,
            'items': {
                'type': 'array',
                'minItems': 1,
                'maxItems': MAX_SIDE,
                'items': {'type': 'number', 'minimum': 0, 'maximum': 255},
            },
        },
        'feature_maps': {'description': 'Whether to answer with what each layer sees.', 'type': 'boolean'},
        'allow_blank': {
            'description': 'Whether an image that shows nothing gets an answer whose class is null instead of status '
            '422.',
            'type': 'boolean',
        },
    },
    'required': ['image'],
    'additionalProperties': False,
}


class RequestError(Exception):
    """A request that is not answered, and why."""

    def __init__(self, status: http.HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


class Endpoint:
    """Answers requests with the model of a run, one after the other."""

    def __init__(self, trained: RestoredModel):
        self._trained = trained
        self._lock = threading.Lock()

    def answer(self, body: bytes) -> dict[str, Any]:
        """The prediction for a request as `SCHEMA` says it; RefusedError for any other."""
        request = _parsed(body)
        greys_HxW = np.array(request['image'], np.float32)
        with self._lock:
            try:
                framed = self._trained.frame(greys_HxW)
            except ValueError as error:
                if request.get('allow_blank'):
                    return {'class': None, 'prepared': str(error)}
                raise RequestError(http.HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
            (row,) = self._trained.predict(framed.image[None])
            maps = self._trained.feature_maps(framed.image) if request.get('feature_maps') else {}
        names = self._trained.class_names
        return {
            'class': names[int(row.argmax())],
            'probabilities': dict(zip(names, row.tolist(), strict=True)),
            'prepared': framed.done,
            'image': _encoded(framed.image / self._trained.plan.source.max_pixel),
            'feature_maps': [
                {'layer': name, 'channels': array.shape[-1], **_encoded(_spread(array[..., :MAX_MAPS]))}
                for name, array in maps.items()
                if array.ndim == 3
            ],
        }


def _parsed(body: bytes) -> dict[str, Any]:
    def refuse(reason: str) -> RequestError:
        return RequestError(http.HTTPStatus.BAD_REQUEST, f'{reason}; GET /schema says what is wanted')

    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise refuse(f'the request is no JSON: {str(error)[:100]}') from None
    if not isinstance(request, dict) or 'image' not in request:
        raise refuse("the request is no object with a field 'image'")
    unknown = set(request) - set(SCHEMA['properties'])
    if unknown:
        raise refuse(f'the field {min(unknown)[:40]!r} is unknown')
    for name in ('feature_maps', 'allow_blank'):
        if not isinstance(request.get(name, False), bool):
            raise refuse(f'{name!r} must be true or false, got {str(request[name])[:40]}')
    problem = _problem(request['image'])
    if problem:
        raise refuse(f"'image' {problem}")
    return request


def _problem(image: Any) -> str | None:
    """What is wrong with an image, if anything."""
    if not isinstance(image, list) or not all(isinstance(row, list) for row in image):
        return 'is no list of rows'
    widths = set(map(len, image))
    if len(widths) != 1 or not 1 <= len(image) <= MAX_SIDE or not 1 <= max(widths) <= MAX_SIDE:
        return f'does not have 1 to {MAX_SIDE} rows of 1 to {MAX_SIDE} numbers, all as long'
    for row in image:
        for value in row:
            if type(value) not in (int, float) or not 0 <= value <= 255:  # Not what is not a number, either.
                return f'has {str(value)[:40]!r}, which is no number from 0 to 255'
    return None


def _spread(maps_HxWxC: np.ndarray) -> np.ndarray:
    """Each map from 0 for its least value to 1 for its greatest."""
    least, greatest = maps_HxWxC.min((0, 1), keepdims=True), maps_HxWxC.max((0, 1), keepdims=True)
    return (maps_HxWxC - least) / np.maximum(greatest - least, 1e-6)


def _encoded(maps_HxWxC: np.ndarray) -> dict[str, Any]:
    """Maps from 0 to 1 as bytes in base 64, map by map."""
    pixels = np.rint(255 * np.clip(maps_HxWxC, 0, 1)).astype(np.uint8)
    height, width, _ = pixels.shape
    return {
        'height': height,
        'width': width,
        'pixels': base64.b64encode(np.ascontiguousarray(pixels.transpose(2, 0, 1))).decode(),
    }
