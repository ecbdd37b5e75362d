'use strict';
// Runs the model that comes with mnist_jax in the browser. MODEL, from draw-model.js, holds its layers; the framing is
// that of mnist_jax/data/framing.py for a drawing of at most 64 x 64 pixels, whose strokes are so thick (PEN) that framing
// does not thicken them, except for what a stroke that leaves the pad draws along its edge; that is not done here.

const BLOCK = 7, SIDE = 64;  // The pad has SIDE x SIDE blocks of BLOCK x BLOCK pixels.
const PEN = 6;  // the width of the strokes in blocks
const BOX = 20, MIN_CONTRAST = 16, FAINT = 1 / 8, SPECK = 0.02, LARGE_PART = 0.15, EDGE_WIDTH = 0.12, EDGE_LENGTH = 0.5;

// ----- The model. Tensors are {shape: [height, width, channels], data}.

function decodeFloats(base64) {
  const bytes = Uint8Array.from(atob(base64), character => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({length: bytes.length / 4}, (_, index) => view.getFloat32(4 * index, true));
}

const LAYERS = MODEL.layers.map(layer => layer.kernel === undefined ? layer
  : {...layer, kernel: decodeFloats(layer.kernel), bias: decodeFloats(layer.bias)});

function conv(input, layer) {
  const [height, width, channels] = input.shape, [size, , , features] = layer.shape;
  const before = layer.padding === 'same' ? (size - 1) >> 1 : 0, lost = layer.padding === 'same' ? 0 : size - 1;
  const shape = [height - lost, width - lost, features], data = new Float32Array(shape[0] * shape[1] * features);
  const sums = new Float64Array(features);
  for (let y = 0; y < shape[0]; y++) for (let x = 0; x < shape[1]; x++) {
    sums.set(layer.bias);
    for (let i = 0; i < size; i++) for (let j = 0; j < size; j++) {
      const row = y + i - before, column = x + j - before;
      if (row < 0 || row >= height || column < 0 || column >= width) continue;
      for (let c = 0; c < channels; c++) {
        const value = input.data[(row * width + column) * channels + c];
        const start = ((i * size + j) * channels + c) * features;
        if (value !== 0) for (let k = 0; k < features; k++) sums[k] += value * layer.kernel[start + k];
      }
    }
    for (let k = 0; k < features; k++) data[(y * shape[1] + x) * features + k] = Math.max(sums[k], 0);
  }
  return {shape, data};
}

function maxPool(input, {window, padding}) {
  const [height, width, channels] = input.shape, round = padding === 'same' ? Math.ceil : Math.floor;
  const shape = [round(height / window), round(width / window), channels];
  const missing = [shape[0] * window - height, shape[1] * window - width].map(pixels => Math.max(pixels, 0) >> 1);
  const data = new Float32Array(shape[0] * shape[1] * channels).fill(-Infinity);
  for (let y = 0; y < shape[0] * window; y++) for (let x = 0; x < shape[1] * window; x++) {
    const row = y - missing[0], column = x - missing[1];
    if (row < 0 || row >= height || column < 0 || column >= width) continue;
    for (let c = 0; c < channels; c++) {
      const target = (Math.floor(y / window) * shape[1] + Math.floor(x / window)) * channels + c;
      data[target] = Math.max(data[target], input.data[(row * width + column) * channels + c]);
    }
  }
  return {shape, data};
}

function globalMean(input) {
  const [height, width, channels] = input.shape, data = new Float32Array(channels);
  input.data.forEach((value, index) => { data[index % channels] += value / (height * width); });
  return {shape: [1, 1, channels], data};
}

function dense(input, layer) {
  const features = layer.shape[1], sums = Float64Array.from(layer.bias);
  input.data.forEach((value, index) => {
    for (let k = 0; k < features; k++) sums[k] += value * layer.kernel[index * features + k];
  });
  return {shape: [1, 1, features], data: Float32Array.from(sums, value => layer.relu ? Math.max(value, 0) : value)};
}

// Returns the probabilities of the classes of an image with pixels from 0 to 255.
function probabilities(pixels) {
  let tensor = {shape: MODEL.shape, data: Float32Array.from(pixels, value => value / MODEL.maxPixel)};
  for (const layer of LAYERS) tensor = {conv, maxPool, globalMean, dense}[layer.type](tensor, layer);
  const largest = Math.max(...tensor.data), exponentials = [...tensor.data].map(value => Math.exp(value - largest));
  const total = exponentials.reduce((sum, value) => sum + value, 0);
  return exponentials.map(value => value / total);
}

// ----- The framing. Images are arrays of SIDE x SIDE gray levels, row by row.

const sorted = values => [...values].sort((first, second) => first - second);

// The value below which a fraction of the values lies, interpolated linearly.
function quantile(values, fraction) {
  const order = sorted(values), position = fraction * (order.length - 1), index = Math.floor(position);
  return order[index] + (position - index) * ((order[index + 1] ?? order[index]) - order[index]);
}

// Rounds halves to the even number, as NumPy does.
function roundHalfToEven(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest < 0.5 || (rest === 0.5 && floor % 2 === 0) ? floor : floor + 1;
}

function borderMedian(image) {
  const width = Math.max(1, Math.floor(SIDE / 20)), isInner = value => value >= width && value < SIDE - width;
  return quantile(image.filter((_, index) => !(isInner(index % SIDE) && isInner(Math.floor(index / SIDE)))), 0.5);
}

// Returns the gray level that best separates two classes of pixels; see paper.otsu_threshold.
function otsuThreshold(image) {
  const low = Math.min(...image), range = Math.max(...image) - low, counts = new Array(256).fill(0);
  for (const value of image) counts[Math.min(255, Math.floor(256 * (value - low) / range))]++;
  const center = bin => low + (bin + 0.5) * range / 256;
  const sum = counts.reduce((result, count, bin) => result + count * center(bin), 0);
  let below = 0, sumBelow = 0, largest = -1, best = 0;
  for (let bin = 0; bin < 255; bin++) {
    below += counts[bin]; sumBelow += counts[bin] * center(bin);
    const above = image.length - below;
    const between = below * above * (sumBelow / Math.max(below, 1) - (sum - sumBelow) / Math.max(above, 1)) ** 2;
    if (between > largest) { largest = between; best = bin; }
  }
  return center(best);
}

function* neighbors(index) {
  const x = index % SIDE, y = Math.floor(index / SIDE);
  for (let row = Math.max(0, y - 1); row <= Math.min(SIDE - 1, y + 1); row++)
    for (let column = Math.max(0, x - 1); column <= Math.min(SIDE - 1, x + 1); column++) yield row * SIDE + column;
}

// Returns the connected parts of a mask, corners included, each as a list of indices.
function connectedParts(mask) {
  const isSeen = new Array(mask.length).fill(false), parts = [];
  mask.forEach((isSet, start) => {
    if (!isSet || isSeen[start]) return;
    const part = [start];
    isSeen[start] = true;
    for (const index of part) for (const next of neighbors(index))
      if (mask[next] && !isSeen[next]) { isSeen[next] = true; part.push(next); }
    parts.push(part);
  });
  return parts;
}

// Returns whether a part is a line along an edge of the image; see framing._find_edges.
function isEdge(part) {
  const xs = part.map(index => index % SIDE), ys = part.map(index => Math.floor(index / SIDE));
  const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs) + 1, Math.min(...ys), Math.max(...ys) + 1];
  const touches = left === 0 || top === 0 || right === SIDE || bottom === SIDE;
  const isLong = Math.max(right - left, bottom - top) >= EDGE_LENGTH * SIDE;
  const band = Math.max(1, roundHalfToEven(EDGE_WIDTH * SIDE)), isInner = value => value >= band && value < SIDE - band;
  const inner = part.filter((_, number) => isInner(xs[number]) && isInner(ys[number])).length;
  return touches && isLong && inner < LARGE_PART * part.length;
}

// Scales an image down like Pillow with its bilinear filter, along one axis after the other.
function resize(image, [height, width], [newHeight, newWidth]) {
  const weights = (size, newSize) => Array.from({length: newSize}, (_, index) => {
    const scale = size / newSize, support = Math.max(scale, 1), center = (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(center - support + 0.5)), end = Math.min(size, Math.trunc(center + support + 0.5));
    const row = Array.from({length: end - first}, (_, offset) =>
      Math.max(0, 1 - Math.abs((offset + first - center + 0.5) / support)));
    const total = row.reduce((sum, value) => sum + value, 0);
    return {first, row: row.map(value => value / total)};
  });
  const columns = weights(width, newWidth), rows = weights(height, newHeight);
  const sum = ({first, row}, value) => row.reduce((result, weight, offset) => result + weight * value(first + offset), 0);
  const narrow = Array.from({length: height * newWidth}, (_, index) =>
    Math.fround(sum(columns[index % newWidth], x => image[Math.floor(index / newWidth) * width + x])));
  return Array.from({length: newHeight * newWidth}, (_, index) =>
    Math.fround(sum(rows[Math.floor(index / newWidth)], y => narrow[y * newWidth + index % newWidth])));
}

// Returns the pixels of the digit in an image, scaled and centered like those of MNIST; null if the image is blank.
function frameImage(grays) {
  const low = Math.min(...grays), high = Math.max(...grays);
  if (high - low < MIN_CONTRAST) return null;
  const isInverted = borderMedian(grays) > (low + high) / 2;
  const turned = isInverted ? grays.map(value => 255 - value) : grays, background = borderMedian(turned);
  const ink = turned.map(value => Math.max(value - background, 0));
  if (Math.max(...ink) < MIN_CONTRAST / 2) return null;
  const threshold = otsuThreshold(ink);
  const parts = connectedParts(ink.map(value => value > threshold));
  const size = list => list.reduce((sum, part) => sum + part.length, 0);
  const edges = parts.filter(isEdge);
  let others = parts.filter(part => !isEdge(part));
  if (Math.max(0, ...others.map(part => part.length)) < SPECK * size(edges)) others = parts;
  const largest = Math.max(...others.map(part => part.length));
  let object = new Array(grays.length).fill(false);
  for (const part of others) if (part.length >= SPECK * largest) for (const index of part) object[index] = true;
  const full = quantile(ink.filter((_, index) => object[index]), 0.75);
  for (let step = 0; step < 3; step++) {
    const previous = object;
    object = previous.map((isSet, index) => isSet || (ink[index] > FAINT * full && [...neighbors(index)].some(next => previous[next])));
  }
  const indices = [...object.keys()].filter(index => object[index]);
  const xs = indices.map(index => index % SIDE), ys = indices.map(index => Math.floor(index / SIDE));
  const [left, top] = [Math.min(...xs), Math.min(...ys)], width = Math.max(...xs) + 1 - left, height = Math.max(...ys) + 1 - top;
  const cropped = Array.from({length: height * width}, (_, index) => {
    const source = (top + Math.floor(index / width)) * SIDE + left + index % width;
    return object[source] ? Math.min(ink[source] / full, 1) : 0;
  });
  return place(cropped, height, width);
}

function place(cropped, height, width) {
  const scale = BOX / Math.max(height, width);
  const [newHeight, newWidth] = [height, width].map(side => Math.max(1, roundHalfToEven(side * scale)));
  const resized = resize(cropped, [height, width], [newHeight, newWidth]);
  const largest = Math.max(...resized, 1e-6), small = resized.map(value => value / largest);
  const total = small.reduce((sum, value) => sum + value, 0);
  const center = position => small.reduce((sum, value, index) => sum + value * position(index), 0) / total;
  const [rows, columns, channels] = MODEL.shape;
  const start = (middle, size, newSize) => Math.min(Math.max(roundHalfToEven(size / 2 - middle), 0), Math.max(size - newSize, 0));
  const top = start(center(index => Math.floor(index / newWidth)), rows, newHeight);
  const left = start(center(index => index % newWidth), columns, newWidth);
  const pixels = new Array(rows * columns * channels).fill(0);
  small.forEach((value, index) => {
    const target = (top + Math.floor(index / newWidth)) * columns + left + index % newWidth;
    pixels[target] = roundHalfToEven(Math.min(Math.max(value, 0), 1) * MODEL.maxPixel);
  });
  return pixels;
}

// ----- The page.

const element = id => document.getElementById(id);
const pad = element('draw-pad'), padContext = pad.getContext('2d', {willReadFrequently: true});
let lastPoint = null;

// Returns what is drawn, averaged over blocks: SIDE x SIDE gray levels.
function drawing() {
  const rgba = padContext.getImageData(0, 0, SIDE * BLOCK, SIDE * BLOCK).data;
  return Array.from({length: SIDE * SIDE}, (_, index) => {
    const top = BLOCK * Math.floor(index / SIDE), left = BLOCK * (index % SIDE);
    let sum = 0;
    for (let y = top; y < top + BLOCK; y++) for (let x = left; x < left + BLOCK; x++) sum += rgba[4 * (y * SIDE * BLOCK + x)];
    return Math.round(sum / (BLOCK * BLOCK));
  });
}

function show() {
  const pixels = frameImage(drawing()), values = pixels && probabilities(pixels);
  const best = values ? values.indexOf(Math.max(...values)) : -1;
  element('draw-class').textContent = best < 0 ? '' : MODEL.classes[best];
  for (const [index, row] of [...element('draw-probabilities').rows].entries()) {
    const value = values ? values[index] : 0;
    row.querySelector('meter').value = value;
    row.querySelector('output').textContent = values ? `${(100 * value).toFixed(1)} %` : '';
  }
  const [height, width] = MODEL.shape, context = element('draw-input').getContext('2d');
  const image = context.createImageData(width, height);
  for (let index = 0; index < height * width; index++)
    image.data.set([...new Array(3).fill(pixels ? pixels[index] : 0), 255], 4 * index);
  context.putImageData(image, 0, 0);
}

function clearPad() {
  padContext.fillStyle = '#000';
  padContext.fillRect(0, 0, pad.width, pad.height);
  show();
}

function drawStroke(event) {
  if (!lastPoint || !event.isPrimary) return;
  const box = pad.getBoundingClientRect(), width = PEN * BLOCK;
  const point = [(event.clientX - box.left) * pad.width / box.width, (event.clientY - box.top) * pad.height / box.height];
  padContext.fillStyle = padContext.strokeStyle = '#fff';
  padContext.lineWidth = width; padContext.lineCap = padContext.lineJoin = 'round';
  // Draw a disc too: some browsers draw nothing for a line of length zero.
  padContext.beginPath(); padContext.arc(...point, width / 2, 0, 2 * Math.PI); padContext.fill();
  padContext.beginPath(); padContext.moveTo(...(lastPoint.length ? lastPoint : point)); padContext.lineTo(...point); padContext.stroke();
  lastPoint = point;
  show();
}

for (const name of MODEL.classes) {
  const row = element('draw-probabilities').insertRow();
  row.insertCell().textContent = name;
  row.insertCell().append(Object.assign(document.createElement('meter'), {max: 1, title: `probability of ${name}`}));
  row.insertCell().append(document.createElement('output'));
}
Object.assign(pad, {width: SIDE * BLOCK, height: SIDE * BLOCK});
Object.assign(element('draw-input'), {width: MODEL.shape[1], height: MODEL.shape[0]});
element('draw-about').textContent = MODEL.about;
pad.addEventListener('pointerdown', event => {
  if (event.button || !event.isPrimary) return;  // A second finger must not continue the stroke of the first.
  pad.setPointerCapture(event.pointerId); lastPoint = []; drawStroke(event);
});
pad.addEventListener('pointermove', drawStroke);
for (const name of ['pointerup', 'pointercancel']) pad.addEventListener(name, event => { if (event.isPrimary) lastPoint = null; });
element('draw-clear').addEventListener('click', clearPad);
clearPad();
