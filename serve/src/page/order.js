// An order on its way: sent, followed by the server's events, and cancelled by leaving.

let running = null;

// Calls `hear(name, data)` for each server-sent event of a response.
async function follow(response, hear) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split('\n\n');
    text = events.pop();
    for (const event of events) {
      const field = (name) => event.split('\n').find((line) => line.startsWith(`${name}: `))?.slice(name.length + 2);
      const data = field('data');
      // Without data it is a sign of life.
      if (data) hear(field('event'), JSON.parse(data));
    }
  }
}

// Sends an order and shows how it comes along. `place(card, i)` puts a plate into the gallery, `done(i, picture, card)` gets
// what was made.
async function sendOrder(order, place, done) {
  const controller = new AbortController();
  running = controller;
  showRunning(true);
  showAlert('');
  showFaults([]);
  byId('status').textContent = 'Sent.';
  let plates = [];
  let steps = [];
  let open = 0;
  const failures = [];
  const total = () => {
    const share = steps.reduce((sum, step) => sum + step, 0) / Math.max(steps.length, 1);
    byId('progress').value = share;
    byId('count').textContent = `${Math.round(100 * share)} %`;
  };
  const hear = (name, data) => {
    const i = data.picture;
    if (name === 'accepted') {
      plates = data.pictures.map(drawPending);
      plates.forEach((plate, index) => place(plate.card, index));
      steps = plates.map(() => 0);
      open = plates.length;
      byId('empty').hidden = true;
      for (const [name, end] of Object.entries(data.truncated)) {
        byId(`${name}-fault`).textContent = `Longer than the model takes. It does not see the end: ${end}`;
      }
      if (data.ignored.includes('negative_prompt')) byId('negative_prompt-fault').textContent = 'Has no effect at guidance 1.';
    } else if (name === 'queued') {
      const words = data.ahead === 0 ? 'next in the queue' : `${data.ahead} before it`;
      plates[i].set(words, 0);
      if (i === 0) byId('status').textContent = data.ahead === 0 ? 'Next in the queue.' : `In the queue: ${data.ahead} ${data.ahead === 1 ? 'picture' : 'pictures'} before yours.`;
    } else if (name === 'progress') {
      plates[i].set(data.step < data.of ? `step ${data.step} of ${data.of}` : 'finishing', data.step / data.of);
      steps[i] = data.step / data.of;
      const words = plates.length > 1 ? `Sampling, ${open} to come.` : 'Sampling.';
      if (byId('status').textContent !== words) byId('status').textContent = words;
    } else if (name === 'done') {
      steps[i] = 1;
      open -= 1;
      done(i, { path: pathOf(data.url), settings: data.settings }, plates[i].card);
    } else if (name === 'error') {
      open -= 1;
      plates[i].card.remove();
      failures.push(data.error.message);
    }
    total();
  };
  try {
    const response = await ask('api/pictures', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify(order),
      signal: controller.signal,
    });
    await follow(response, hear);
    if (open > 0) throw new Error('The server ended before the pictures were made.');
    if (failures.length > 0) throw new Error([...new Set(failures)].join(' '));
    byId('status').textContent = plates.length === 1 ? 'Done.' : `Done: ${plates.length} pictures.`;
  } catch (error) {
    showFailure(error, controller.signal.aborted);
  } finally {
    for (const plate of plates) if (plate.card.querySelector('.plate')) plate.card.remove();
    running = null;
    showRunning(false);
    countPictures();
  }
}

function showFailure(error, isCancelled) {
  byId('status').textContent = isCancelled ? 'Cancelled.' : '';
  if (isCancelled || showFaults(error.faults ?? [])) return;
  const isLost = error instanceof TypeError;
  const later = error.retryAfter ? ` Try again in ${error.retryAfter} s.` : '';
  showAlert(isLost ? 'The server cannot be reached. Is it still running?' : error.message + later);
}

function showAlert(text) {
  byId('alert').textContent = text;
  byId('alert').hidden = text === '';
}

function showRunning(isRunning) {
  const { activeElement } = document;
  byId('generate').hidden = isRunning;
  byId('cancel').hidden = !isRunning;
  byId('running').hidden = !isRunning;
  byId('progress').value = 0;
  byId('count').textContent = '';
  // The keyboard goes on where its button was.
  if (isRunning && activeElement === byId('generate')) byId('cancel').focus();
  if (!isRunning && activeElement === byId('cancel')) byId('generate').focus();
}

function generate() {
  if (running) return;
  if (byId('fresh').checked || byId('seed').value === '') byId('seed').value = randomSeed();
  keepForm();
  const before = byId('grid').firstChild;
  sendOrder(
    readForm(),
    (card) => byId('grid').insertBefore(card, before),
    (i, picture, card) => {
      card.replaceWith(drawCard(picture));
      // In the order in which they lie in the gallery.
      pictures.push(picture);
      const places = new Map([...byId('grid').children].map((child, place) => [child, place]));
      pictures.sort((one, other) => places.get(one.card) - places.get(other.card));
      keepGallery();
    },
  );
}

// The same settings, in the same place.
function makeAgain(picture) {
  if (running) {
    showAlert('One order at a time: wait for it, or cancel it.');
    return;
  }
  const { prompt, negative_prompt, width, height, steps, guidance, sampler, shift, seed } = picture.settings;
  const order = { prompt, negative_prompt, size: `${width}x${height}`, steps, guidance, sampler, shift, seed, n: 1 };
  sendOrder(
    order,
    (card) => { picture.card.hidden = true; picture.card.before(card); },
    (_, made, card) => {
      const old = picture.card;
      Object.assign(picture, made, { isGone: false });
      card.remove();
      old.replaceWith(drawCard(picture));
      keepGallery();
    },
  ).finally(() => { picture.card.hidden = false; });
}
