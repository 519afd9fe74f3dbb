// What happens when the page is opened.

async function start() {
  byId('form').addEventListener('submit', (event) => {
    event.preventDefault();
    generate();
  });
  byId('cancel').addEventListener('click', () => running?.abort());
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && description && !document.querySelector('dialog[open]')) {
      event.preventDefault();
      generate();
    }
  });
  wireGallery();
  if (!matchMedia('(pointer: coarse)').matches) byId('status').textContent = 'Ctrl + Enter generates.';
  // A key is needed before the rest can be drawn: Escape would leave an empty form.
  byId('key-dialog').addEventListener('cancel', (event) => event.preventDefault());
  try {
    const response = await ask('api/description');
    drawForm(await response.json());
    loadGallery();
    byId('form').addEventListener('change', keepForm);
  } catch (error) {
    byId('generate').disabled = true;
    showFailure(error, false);
  }
}

start();
