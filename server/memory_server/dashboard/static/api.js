// Talks to the server: tool calls, the session and the live feed.
const base = new URL('../', import.meta.url);
const page = new URLSearchParams(location.search);
export const isLive = page.get('live') !== '0';
const scope = new URLSearchParams();
for (const name of ['agent', 'namespace']) if (page.get(name)) scope.set(name, page.get(name));

/** An error that the server returned, with a hint. */
export class Refused extends Error {
  constructor(status, error) {
    super(error?.message || `the server answered ${status}`);
    this.status = status;
    this.code = error?.code || 'internal';
    this.hint = error?.hint || '';
  }
}

// Half of the proof of a session; the cookie is the other half. Storage belongs to one port of a host, cookies to all.
const KEY = 'memory-session';
const stored = () => { try { return localStorage.getItem(KEY); } catch { return pageKey; } };
let pageKey = null;
function storeKey(key) {
  pageKey = key;
  try {
    if (key) localStorage.setItem(KEY, key);
    else localStorage.removeItem(KEY);
  } catch { /* storage may be off */ }
}
const proof = () => (stored() ? { 'x-memory-session': stored() } : {});

const url = (path) => {
  const found = new URL(`api/${path}`, base);
  for (const [name, value] of scope) found.searchParams.set(name, value);
  return found;
};

async function ask(path, options) {
  let response;
  try {
    response = await fetch(url(path), { credentials: 'same-origin', ...options,
      headers: { ...proof(), ...options?.headers } });
  } catch {
    throw new Refused(0, { code: 'unreachable', message: 'The server does not answer.', hint: 'Is it running?' });
  }
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  if (response.status === 401 && path !== 'login') dispatchEvent(new Event('memory:login'));
  throw new Refused(response.status, body.error);
}

const post = (path, body) => ask(path, {
  method: 'POST',
  headers: { 'content-type': 'application/json', 'x-memory-dashboard': '1' },
  body: JSON.stringify(body),
});

export const session = () => ask('session');
export async function login(secret) {
  storeKey((await post('login', secret)).page_key);
}
export async function logout() {
  await post('logout', {});
  storeKey(null);
}
/** Calls a tool, as an agent does over MCP. */
export const call = (tool, args = {}) => post(`call/${tool}`, args);

/** Opens the page as another agent. */
export function actAs(agent) {
  const next = new URL(location.href);
  if (agent) next.searchParams.set('agent', agent);
  else next.searchParams.delete('agent');
  location.assign(next);
}

const listeners = new Set();
const states = new Set();
let source;
let state = isLive ? 'trying' : 'off';
const say = (next) => { state = next; states.forEach((each) => each(next)); };
/** The latest events when the stream was opened, oldest first. */
export let recent = [];

/** Calls a listener for new events; returns a function that stops this. */
export function onEvents(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

/** Calls a listener with the state of the stream. */
export function onStreamState(listener) {
  states.add(listener);
  listener(state);
  return () => states.delete(listener);
}

export function startListening() {
  if (!isLive || source) return;
  const events = url('events');
  if (stored()) events.searchParams.set('session', stored()); // an EventSource sends no headers
  source = new EventSource(events);
  source.addEventListener('open', () => say('live'));
  source.addEventListener('error', () => say(source.readyState === EventSource.CLOSED ? 'off' : 'trying'));
  source.addEventListener('closed', () => { stopListening(); dispatchEvent(new Event('memory:login')); });
  source.addEventListener('recent', (event) => {
    recent = JSON.parse(event.data).events;
    dispatchEvent(new Event('memory:recent'));
  });
  source.addEventListener('happened', (event) => {
    const { events, more } = JSON.parse(event.data);
    listeners.forEach((each) => each(events, more));
  });
}

export function stopListening() {
  source?.close();
  source = undefined;
  if (isLive) say('trying');
}

// Browsers allow few connections per host, so a hidden page closes its stream and catches up when it is shown again.
let paused = false;
const rest = () => { if (source) { paused = true; stopListening(); } };
const wake = () => {
  if (!paused) return;
  paused = false;
  startListening();
  listeners.forEach((each) => each([], 1));
};
addEventListener('pagehide', rest);
addEventListener('pageshow', wake);
document.addEventListener('visibilitychange', () => (document.hidden ? rest() : wake()));
