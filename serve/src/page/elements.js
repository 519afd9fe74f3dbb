// What the other parts stand on: elements, storage, the clipboard, and requests with the key.

const byId = (id) => document.getElementById(id);

// Text only ever becomes text: nothing here parses HTML.
function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// Whatever a stored text says, a broken or refused storage is no reason to stop.
function load(name) {
  try {
    return JSON.parse(localStorage.getItem(`ferrotype.${name}`));
  } catch {
    return null;
  }
}

function save(name, value) {
  try {
    localStorage.setItem(`ferrotype.${name}`, JSON.stringify(value));
  } catch {
    // Full or switched off: the page works without.
  }
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Pages that came by plain HTTP from another machine have no clipboard but this.
    const area = element('textarea', { value: text });
    (document.querySelector('dialog[open]') ?? document.body).append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
}

class Refused extends Error {
  constructor(status, error, retryAfter) {
    super(error?.message ?? `The server answered with status ${status}.`);
    this.status = status;
    this.faults = error?.faults ?? [];
    this.retryAfter = retryAfter;
  }
}

// The page lies at the server's root. Behind another server that is a folder there, whether it was opened with the slash or without.
const root = location.origin + location.pathname.replace(/\/?$/, '/');
const urlOf = (path) => new URL(path, root).href;

// A fetch that has the key, asks for one where it is needed, and throws Refused where the server does. Paths are from the root, without
// a slash before them.
async function ask(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem('ferrotype.key');
    const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(urlOf(path), { ...options, headers });
    if (response.ok) return response;
    if (response.status === 401) {
      await askForKey();
      continue;
    }
    const body = await response.json().catch(() => null);
    throw new Refused(response.status, body?.error, response.headers.get('Retry-After'));
  }
}

function askForKey() {
  const dialog = byId('key-dialog');
  byId('key').value = '';
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    byId('key-form').addEventListener('submit', () => {
      sessionStorage.setItem('ferrotype.key', byId('key').value);
      resolve();
    }, { once: true });
  });
}
