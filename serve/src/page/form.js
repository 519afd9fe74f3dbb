// The form: drawn from the generator's description, read into an order, and filled from a picture's settings.

const FIELDS = ['prompt', 'negative_prompt', 'steps', 'guidance', 'sampler', 'shift', 'seed', 'n'];
const SHAPES = [[1, 1], [3, 2], [2, 3], [16, 9], [9, 16]];
let description = null;

function drawForm(described) {
  description = described;
  const { defaults, limits, samplers } = described;
  byId('model').textContent = `${described.model} · ${described.checkpoint.slice(0, 12)}`;
  byId('prompt').maxLength = byId('negative_prompt').maxLength = limits.prompt;
  byId('steps').max = limits.steps;
  byId('guidance').max = limits.guidance;
  byId('n').max = limits.pictures;
  byId('steps-range').max = Math.min(limits.steps, Math.max(60, 2 * defaults.steps));
  byId('guidance-range').max = Math.min(limits.guidance, Math.max(12, 2 * defaults.guidance));
  byId('width').step = byId('height').step = described.side_multiple;
  byId('width').min = byId('height').min = described.side_multiple;
  byId('sampler').replaceChildren(...samplers.map((name) => element('option', { value: name, textContent: name })));
  drawSizes();
  for (const name of ['steps', 'guidance']) {
    byId(`${name}-range`).addEventListener('input', () => { byId(name).value = byId(`${name}-range`).value; });
    byId(name).addEventListener('input', () => { byId(`${name}-range`).value = byId(name).value; });
  }
  byId('random').addEventListener('click', () => { byId('seed').value = randomSeed(); });
  const [width, height] = defaults.size.split('x').map(Number);
  fillForm({ ...defaults, width, height, seed: randomSeed() });
  const kept = load('form');
  if (kept && typeof kept === 'object') {
    fillForm(kept);
    byId('fresh').checked = kept.fresh !== false;
  }
}

// Sizes near the default one in area, in the usual shapes.
function drawSizes() {
  const { side_multiple: multiple, most_pixels: most, defaults } = description;
  const area = defaults.size.split('x').reduce((width, height) => width * height);
  const sizes = new Set([defaults.size]);
  for (const [across, down] of SHAPES) {
    const side = (ratio) => Math.max(1, Math.round(Math.sqrt(area * ratio) / multiple)) * multiple;
    const [width, height] = [side(across / down), side(down / across)];
    if (width * height <= most) sizes.add(`${width}x${height}`);
  }
  const choice = (value, text, width, height) => {
    const outline = element('i', { className: value ? '' : 'any' });
    if (value) {
      const longest = Math.max(width, height);
      outline.style.width = `${(16 * width) / longest}px`;
      outline.style.height = `${(16 * height) / longest}px`;
    }
    const shape = element('span', { className: 'shape' }, outline);
    shape.setAttribute('aria-hidden', 'true');
    return element('label', {}, element('input', { type: 'radio', name: 'size', value }), shape, text);
  };
  const choices = [...sizes].slice(0, 5).map((size) => {
    const [width, height] = size.split('x').map(Number);
    return choice(size, `${width}×${height}`, width, height);
  });
  byId('sizes').replaceChildren(...choices, choice('', 'other', 0, 0));
  byId('sizes').addEventListener('change', () => { byId('free').hidden = chosenSize() !== ''; });
}

const chosenSize = () => byId('form').elements.size.value;
const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

// Takes what it knows of `settings` and leaves the rest as it is.
function fillForm(settings) {
  for (const name of FIELDS) {
    const value = settings[name];
    const input = byId(name);
    if (!['string', 'number'].includes(typeof value)) continue;
    if (input.tagName === 'SELECT' && !description.samplers.includes(value)) continue;
    input.value = value;
    input.dispatchEvent(new Event('input'));
  }
  const { width, height } = settings;
  if (width > 0 && height > 0) {
    byId('width').value = width;
    byId('height').value = height;
    const radios = [...byId('form').elements.size];
    (radios.find((radio) => radio.value === `${width}x${height}`) ?? radios.at(-1)).checked = true;
    byId('free').hidden = chosenSize() !== '';
  }
}

// The order as the server takes it. What is left empty is the server's to choose.
function readForm() {
  const number = (id) => (byId(id).value === '' ? null : Number(byId(id).value));
  return {
    prompt: byId('prompt').value,
    negative_prompt: byId('negative_prompt').value,
    size: chosenSize() || `${byId('width').value}x${byId('height').value}`,
    steps: number('steps'),
    guidance: number('guidance'),
    sampler: byId('sampler').value,
    shift: number('shift'),
    seed: number('seed'),
    n: number('n'),
  };
}

function keepForm() {
  const [width, height] = readForm().size.split('x').map(Number);
  save('form', { ...readForm(), width, height, fresh: byId('fresh').checked });
}

// Each fault beside its field; returns whether all have one.
function showFaults(faults) {
  for (const place of document.querySelectorAll('.fault')) place.textContent = '';
  for (const input of document.querySelectorAll('[aria-invalid]')) input.removeAttribute('aria-invalid');
  let first = null;
  for (const { param, message } of faults) {
    const place = byId(`${param}-fault`);
    if (!place) return false;
    place.textContent = message;
    const input = byId(param === 'size' ? 'width' : param);
    input.setAttribute('aria-invalid', 'true');
    first ??= input;
  }
  first?.focus();
  return faults.length > 0;
}
