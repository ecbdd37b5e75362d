"""The endpoint of the drawing page: checks requests, prepares images, and answers with predictions and feature maps."""

import base64
import http
import itertools
import json
import threading

import numpy as np

from mnist_jax.errors import NonFiniteError, UserError, comma_separated, did_you_mean
from mnist_jax.files import JsonObject
from mnist_jax.inference.restored import RestoredModel

MAX_SIDE = 256  # pixels per side of an image in a request
MAX_MAPS = 16  # feature maps per layer in a response

VALUE: JsonObject = {'type': 'number', 'minimum': 0, 'maximum': 255}
FIELDS: dict[str, JsonObject] = {
    'image': {
        'description': 'Rows of gray values from 0 to 255, or of [red, green, blue], all of the same length. The image '
        'is prepared like the training images: digits, light on dark or dark on light, are scaled and centered.',
        'type': 'array',
        'minItems': 1,
        'maxItems': MAX_SIDE,
        'items': {
            'type': 'array',
            'minItems': 1,
            'maxItems': MAX_SIDE,
            'items': {'anyOf': [VALUE, {'type': 'array', 'minItems': 3, 'maxItems': 3, 'items': VALUE}]},
        },
    },
    'feature_maps': {
        'description': 'Whether the response contains the feature maps of every layer whose output is an image.',
        'type': 'boolean',
    },
    'allow_blank': {
        'description': 'Whether a blank image is answered with the class null instead of status 422.',
        'type': 'boolean',
    },
}
SCHEMA: JsonObject = {
    '$schema': 'https://json-schema.org/draft/2020-12/schema',
    'title': 'The body of POST /predict',
    'type': 'object',
    'properties': FIELDS,
    'required': ['image'],
    'additionalProperties': False,
}


class RequestError(Exception):
    """A request was refused, with an HTTP status and a reason."""

    def __init__(self, status: http.HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


class Endpoint:
    """Answers requests with a trained model, one at a time."""

    def __init__(self, model: RestoredModel):
        self._model = model
        self._lock = threading.Lock()

    @property
    def frames(self) -> bool:
        """Whether images are framed as single objects on a plain background."""
        return self._model.plan.source.data.description.framing is not None

    def answer(self, body: bytes) -> JsonObject:
        """Returns the prediction for a request whose body matches `SCHEMA`.

        Raises:
          RequestError: the body does not match, the image is blank and `allow_blank` is not set, its pixels seem to be
            scaled to 0 to 1, or the run has diverged.
        """
        request = _parse_request(body)
        pixels = np.array(request['image'], np.float32)  # HxW or HxWx3
        with self._lock:
            try:
                framed = self._model.prepare(pixels)
            except ValueError as error:
                if request.get('allow_blank'):
                    return {'class': None, 'prepared': str(error)}
                raise RequestError(http.HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
            try:
                (probabilities_K,) = self._model.predict(framed.image[None])
                maps = self._model.feature_maps(framed.image) if request.get('feature_maps') else {}
            except UserError as error:  # The pixels seem to be scaled.
                raise RequestError(http.HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from None
            except NonFiniteError as error:
                raise RequestError(http.HTTPStatus.INTERNAL_SERVER_ERROR, str(error)) from None
        names = self._model.class_names
        return {
            'class': names[int(probabilities_K.argmax())],
            'probabilities': dict(zip(names, probabilities_K.tolist(), strict=True)),
            'prepared': framed.description,
            'image': _encode(framed.image / self._model.plan.source.max_pixel),
            'feature_maps': [
                {'layer': name, 'channels': array.shape[-1], **_encode(_normalize(array[..., :MAX_MAPS]))}
                for name, array in maps.items()
                if array.ndim == 3
            ],
        }


def _parse_request(body: bytes) -> JsonObject:
    """Returns the checked fields of a request."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _bad_request(f'the request body must be JSON: {str(error)[:100]}') from None
    if not isinstance(request, dict) or 'image' not in request:
        raise _bad_request("the request body must be a JSON object with a field 'image'")
    for name in sorted(request):
        if name not in FIELDS:
            raise _bad_request(
                f'{name[:40]!r} is not a field{did_you_mean(name[:40], FIELDS)}; the fields are: '
                f'{comma_separated(FIELDS)}'
            )
    for name in ('feature_maps', 'allow_blank'):
        if not isinstance(request.get(name, False), bool):
            raise _bad_request(f'{name!r} must be true or false, got {str(request[name])[:40]}')
    _check_image(request['image'])
    return request


def _check_image(image: object) -> None:
    """Raises a RequestError unless `image` matches the schema."""
    if not isinstance(image, list) or not all(isinstance(row, list) for row in image):
        raise _bad_request(f"'image' must be a list of rows of numbers, got {str(image)[:40]}")
    if not 1 <= len(image) <= MAX_SIDE:
        raise _bad_request(f"'image' must have 1 to {MAX_SIDE} rows, got {len(image)}")
    lengths = sorted({len(row) for row in image})
    if len(lengths) > 1:
        raise _bad_request(f"'image' must have rows of the same length, got {lengths[0]} to {lengths[-1]} numbers")
    if not 1 <= lengths[0] <= MAX_SIDE:
        raise _bad_request(f"'image' must have rows of 1 to {MAX_SIDE} numbers, got {lengths[0]}")
    is_color = isinstance(image[0][0], list)
    for cell in itertools.chain.from_iterable(image):
        if isinstance(cell, list) != is_color or (is_color and len(cell) != 3):
            raise _bad_request(
                f"'image' must contain numbers only, or [red, green, blue] only, got {str(cell)[:40]} after "
                f'{str(image[0][0])[:40]}'
            )
        for value in cell if is_color else (cell,):
            if type(value) not in (int, float) or not 0 <= value <= 255:  # also true for NaN
                raise _bad_request(f"'image' must contain numbers from 0 to 255, got {str(value)[:40]!r}")


def _bad_request(reason: str) -> RequestError:
    return RequestError(http.HTTPStatus.BAD_REQUEST, f'{reason}; see GET /schema')


def _normalize(maps_HxWxC: np.ndarray) -> np.ndarray:
    """Maps the minimum of each feature map to 0 and its maximum to 1."""
    low, high = maps_HxWxC.min((0, 1), keepdims=True), maps_HxWxC.max((0, 1), keepdims=True)
    return (maps_HxWxC - low) / np.maximum(high - low, 1e-6)


def _encode(maps_HxWxC: np.ndarray) -> JsonObject:
    """Encodes maps with values from 0 to 1 as bytes in base64, one map after the other."""
    pixels = np.rint(255 * np.clip(maps_HxWxC, 0, 1)).astype(np.uint8)
    height, width, _ = pixels.shape
    return {'height': height, 'width': width, 'pixels': base64.b64encode(pixels.transpose(2, 0, 1).tobytes()).decode()}
