// The gallery: pictures from the newest on, each with its settings. Between visits the settings stay here and the pictures on
// the server, as long as it keeps them.

const MOST_KEPT = 200;
let pictures = [];
let shown = null;

const isSettings = (settings) =>
  settings && typeof settings.prompt === 'string' && settings.width > 0 && settings.height > 0 && Number.isInteger(settings.seed);

function loadGallery() {
  const kept = load('gallery');
  if (Array.isArray(kept)) {
    const known = kept.filter((one) => one && isSettings(one.settings)).slice(0, MOST_KEPT);
    pictures = known.map(({ path, settings }) => ({ path: pathOf(path), settings }));
  }
  for (const picture of pictures) byId('grid').append(drawCard(picture));
  countPictures();
}

function keepGallery() {
  save('gallery', pictures.slice(0, MOST_KEPT).map(({ path, settings }) => ({ path, settings })));
  countPictures();
}

function countPictures() {
  const { length } = pictures;
  byId('gallery-count').textContent = length === 0 ? '' : length === 1 ? '1 picture' : `${length} pictures`;
  byId('clear').hidden = length === 0;
  byId('empty').hidden = byId('grid').childElementCount > 0;
}

// Only this server's pictures, whatever name it gave itself, and whatever folder of another server that is in.
const pathOf = (url) => String(url).match(/(?:^|\/)(pictures\/[0-9a-f]+\.png)$/)?.[1] ?? null;

const inSummary = ({ width, height, seed }) => `${width}×${height} · #${seed}`;

// A card of the picture's shape, within reason.
function drawFrame({ width, height }, ...children) {
  const card = element('li', { className: 'card' }, ...children);
  card.style.setProperty('--ratio', Math.min(Math.max(width / height, 0.5), 2.6));
  return card;
}

function drawCard(picture) {
  const { settings } = picture;
  const image = element('img', { alt: settings.prompt, loading: 'lazy', draggable: false });
  const button = element('button', { type: 'button' }, image);
  button.addEventListener('click', () => showLarge(picture));
  picture.card = drawFrame(
    settings,
    button,
    element('p', { textContent: settings.prompt }),
    element('p', { className: 'soft', textContent: inSummary(settings) }),
  );
  image.addEventListener('error', () => {
    picture.isGone = true;
    button.replaceChildren(element('span', { className: 'gone', textContent: 'No longer kept. Its settings make it again.' }));
  });
  if (picture.path) image.src = urlOf(picture.path);
  else image.dispatchEvent(new Event('error'));
  return picture.card;
}

// A plate on which a picture develops.
function drawPending(settings) {
  const level = element('i');
  const words = element('span', { textContent: 'waiting' });
  const plate = element('div', { className: 'plate' }, level, words);
  const card = drawFrame(settings, plate, element('p', { textContent: settings.prompt }), element('p', { className: 'soft', textContent: inSummary(settings) }));
  return {
    card,
    set(text, share) {
      words.textContent = text;
      level.style.height = `${100 * share}%`;
    },
  };
}

function removePicture(picture) {
  picture.card.remove();
  pictures = pictures.filter((other) => other !== picture);
  keepGallery();
}

function showLarge(picture) {
  const { settings } = picture;
  const place = pictures.indexOf(picture);
  shown = picture;
  byId('large-image').hidden = picture.isGone === true;
  byId('large-gone').hidden = picture.isGone !== true;
  byId('large-image').alt = settings.prompt;
  byId('large-image').width = settings.width;
  byId('large-image').height = settings.height;
  byId('large-image').className = Math.max(settings.width, settings.height) < 128 ? 'pixels' : '';
  if (!picture.isGone) byId('large-image').src = urlOf(picture.path);
  byId('large-prompt').textContent = settings.prompt;
  byId('large-place').textContent = `${place + 1} of ${pictures.length}`;
  byId('newer').disabled = place <= 0;
  byId('older').disabled = place >= pictures.length - 1;
  byId('large-other').hidden = settings.checkpoint === description.checkpoint;
  byId('download').hidden = picture.isGone === true;
  byId('download').href = picture.path ? urlOf(picture.path) : '';
  byId('download').download = `ferrotype-${settings.seed}.png`;
  byId('again').hidden = picture.isGone !== true;
  byId('copied').textContent = '';
  const rows = {
    ...(settings.negative_prompt ? { 'Negative prompt': settings.negative_prompt } : {}),
    Size: `${settings.width} × ${settings.height}`,
    Steps: settings.steps,
    Guidance: settings.guidance,
    Sampler: settings.sampler,
    Shift: settings.shift,
    Seed: settings.seed,
    Model: settings.model,
    Checkpoint: String(settings.checkpoint).slice(0, 16),
  };
  byId('large-settings').replaceChildren(
    ...Object.entries(rows).flatMap(([name, value]) => [element('dt', { textContent: name }), element('dd', { textContent: value })]),
  );
  if (!byId('large').open) byId('large').showModal();
  byId('large').scrollTop = 0;
}

function showNeighbour(distance) {
  const neighbour = pictures[pictures.indexOf(shown) + distance];
  if (neighbour) showLarge(neighbour);
}

function wireGallery() {
  const dialog = byId('large');
  byId('newer').addEventListener('click', () => showNeighbour(-1));
  byId('older').addEventListener('click', () => showNeighbour(1));
  byId('close').addEventListener('click', () => dialog.close());
  dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener('close', () => shown?.card.querySelector('button')?.focus());
  dialog.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowLeft') showNeighbour(-1);
    if (event.key === 'ArrowRight') showNeighbour(1);
  });
  byId('use').addEventListener('click', () => {
    const { settings } = shown;
    dialog.close();
    fillForm({ ...settings, n: 1 });
    byId('fresh').checked = false;
    keepForm();
    byId('prompt').focus();
    byId('status').textContent = 'Settings taken from the picture; the seed stays as it is.';
  });
  byId('copy').addEventListener('click', async () => {
    await copyText(JSON.stringify(shown.settings, null, 2));
    byId('copied').textContent = 'Copied.';
  });
  byId('again').addEventListener('click', () => {
    const picture = shown;
    dialog.close();
    makeAgain(picture);
  });
  byId('remove').addEventListener('click', () => {
    const picture = shown;
    dialog.close();
    removePicture(picture);
  });
  byId('clear').addEventListener('click', () => {
    if (!confirm('Forget all pictures and their settings?')) return;
    for (const picture of pictures) picture.card.remove();
    pictures = [];
    keepGallery();
  });
}
