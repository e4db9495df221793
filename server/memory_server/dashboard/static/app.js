// The frame around the views: session, navigation and current view.
import { html, render, useEffect, useLayoutEffect, useState } from './lib.js';
import { session as askSession, login, logout, startListening, stopListening, onStreamState, actAs } from './api.js';
import { Notices, Trouble } from './parts.js';
import { Login } from './views/login.js';

const ICONS = {
  overview: 'M3 13h8V3H3zm0 8h8v-6H3zm10 0h8V11h-8zm0-18v6h8V3z',
  memories: 'M10 2a8 8 0 1 0 4.9 14.3l5.4 5.4 1.4-1.4-5.4-5.4A8 8 0 0 0 10 2m0 2a6 6 0 1 1 0 12 6 6 0 0 1 0-12',
  map: 'M6 4a3 3 0 1 0 0 6 3 3 0 0 0 0-6m11 2a2 2 0 1 0 0 4 2 2 0 0 0 0-4'
    + 'M9 15a3 3 0 1 0 0 6 3 3 0 0 0 0-6m9-1a4 4 0 1 0 0 8 4 4 0 0 0 0-8',
  team: 'M8 4a4 4 0 1 0 0 8 4 4 0 0 0 0-8m9 2a3 3 0 1 0 0 6 3 3 0 0 0 0-6M8 14c-4 0-7 2-7 5v1h14v-1c0-3-3-5-7-5'
    + 'm9 0c-.7 0-1.3.1-1.9.3 1.2 1.2 1.9 2.8 1.9 4.7v1h6v-1c0-3-3-5-6-5',
  sharing: 'M18 2a3.5 3.5 0 0 0-3.4 4.3L8.8 9.7a3.5 3.5 0 1 0 0 4.6l5.8 3.4'
    + 'A3.5 3.5 0 1 0 15.7 15.7L9.9 12.3v-.6l5.8-3.4A3.5 3.5 0 1 0 18 2',
  audit: 'M12 2 4 5v6c0 5 3.4 9.7 8 11 4.6-1.3 8-6 8-11V5zm-1.2 14L7 12.2l1.4-1.4 2.4 2.4 4.8-4.8L17 9.8z',
};
const VIEWS = [
  ['overview', 'Overview', () => import('./views/overview.js')],
  ['memories', 'Memories', () => import('./views/memories.js')],
  ['map', 'Map', () => import('./views/map.js')],
  ['team', 'Agents', () => import('./views/team.js')],
  ['sharing', 'Sharing', () => import('./views/sharing.js')],
  ['audit', 'Audit', () => import('./views/audit.js')],
];
const where = () => location.hash.match(/^#\/([a-z]+)/)?.[1] || 'overview';

/** Returns the name of the view in the URL's hash. */
function useHash() {
  const [view, setView] = useState(where());
  // A layout effect: the listener is there before a link can be clicked.
  useLayoutEffect(() => {
    const follow = () => setView(where());
    addEventListener('hashchange', follow);
    return () => removeEventListener('hashchange', follow);
  }, []);
  return view;
}

function Theme() {
  const [theme, setTheme] = useState(document.documentElement.dataset.theme || 'auto');
  const next = { auto: 'light', light: 'dark', dark: 'auto' }[theme];
  const change = () => {
    if (next === 'auto') delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = next;
    try { localStorage.setItem('theme', next); } catch { /* storage may be off */ }
    dispatchEvent(new Event('memory:theme'));
    setTheme(next);
  };
  return html`<button class="plain" onClick=${change} aria-label=${`Theme: ${theme}. Change to ${next}`}
    title=${`Theme: ${theme}`}>
    ${{ auto: '◐', light: '☀', dark: '☾' }[theme]}</button>`;
}

function Live() {
  const [state, setState] = useState('trying');
  useEffect(() => onStreamState(setState), []);
  const says = { live: 'live', trying: 'connecting', off: 'not live' }[state];
  return html`<span class="live ${state}" title="Whether the page updates live">${says}</span>`;
}

/** The current agent, which can be changed if authentication is off. */
function Who({ session }) {
  const [agent, setAgent] = useState(session.agent);
  if (!session.may_choose) return html`<span class="who" title="namespace / agent">${session.namespace} / <b>
    ${session.agent}</b></span>`;
  return html`<form class="who" onSubmit=${(event) => { event.preventDefault(); actAs(agent.trim()); }}>
    <span class="wide-only">${session.namespace} / </span>
    <input aria-label="Act as agent" title="Act as this agent" value=${agent} size="12" spellcheck="false"
      autocomplete="off"
      onInput=${(event) => setAgent(event.target.value)} />
    <button class=${agent === session.agent ? 'hidden' : ''}>Act as</button>
  </form>`;
}

const focusMain = (event) => {
  event.preventDefault();
  document.getElementById('main').focus();
};

function Frame({ session, onLeave }) {
  const view = useHash();
  const [loaded, setLoaded] = useState({});
  const [current, title, load] = VIEWS.find(([name]) => name === view) || VIEWS[0];
  useEffect(() => {
    document.title = `${title} · Redis memory`;
    let left = false;
    const show = (loaded) => { if (!left) setLoaded({ name: current, ...loaded }); };
    load().then((module) => show({ View: module.default }), (error) => show({ error }));
    return () => { left = true; };
  }, [current]);
  const { View, name, error } = loaded;
  return html`<a class="skip" href="#main" onClick=${focusMain}>Skip to content</a>
    <header class="top">
      <a class="brand" href="#/overview" aria-label="Redis memory">
        <img src="static/icon.svg" alt="" width="24" height="24" /><span class="wide-only">Redis memory</span></a>
      <${Who} session=${session} />
      ${session.operator && html`<span class="badge" data-kind="operator"
        title="You see figures, tasks, grants and the audit of the whole namespace">
        ${session.may.includes('act for another agent') ? 'admin' : 'operator'}</span>`}
      <span class="gap"></span><${Live} /><${Theme} />
      ${session.session && html`<button onClick=${onLeave}>Log out</button>`}
    </header>
    <nav aria-label="Views">
      ${VIEWS.map(([key, text]) => html`<a key=${key} href=${`#/${key}`}
        aria-current=${key === current ? 'page' : null}>
        <svg viewBox="0 0 24 24" aria-hidden="true"><path d=${ICONS[key]} /></svg><span>${text}</span></a>`)}</nav>
    <main class="page" id="main" tabindex="-1">
      <h1 class="sr">${title}</h1>
      <${Trouble} error=${error} />
      ${name === current && View ? html`<${View} session=${session} />` : html`<p class="quiet">Loading…</p>`}
    </main>`;
}

/** Removes the key of a one-time URL from the address bar and the history, and returns it. */
function takeKey() {
  const key = location.hash.match(/^#operator=(.+)$/)?.[1];
  if (key) history.replaceState(null, '', location.pathname + location.search + '#/overview');
  return key;
}

function App() {
  const [session, setSession] = useState();
  const [error, setError] = useState();
  const [keyError, setKeyError] = useState();
  const open = async () => {
    try {
      const found = await askSession();
      setSession(found);
      setError(undefined);
      if (!found.login) startListening();
    } catch (refused) { setError(refused); }
  };
  useEffect(() => {
    const ask = () => { stopListening(); setSession((old) => ({ ...old, login: true })); };
    addEventListener('memory:login', ask);
    const key = takeKey();
    (key ? login({ key }).catch(setKeyError) : Promise.resolve()).then(open, open);
    return () => removeEventListener('memory:login', ask);
  }, []);
  const leave = async () => { await logout(); stopListening(); location.reload(); };
  if (!session) return html`<main class="page"><${Trouble} error=${error} retry=${open} />
    ${!error && html`<p class="quiet">Loading…</p>`}</main>`;
  if (session.login) return html`<${Login} error=${keyError || error} onLogin=${() => { setKeyError(undefined);
    return open(); }} />`;
  return html`<${Frame} session=${session} onLeave=${leave} />
    ${(keyError || error) && html`<div class="float"><${Trouble} error=${keyError || error} /></div>`}<${Notices} />`;
}

const root = document.getElementById('app');
root.replaceChildren();
render(html`<${App} />`, root);
