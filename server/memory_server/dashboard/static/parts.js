// Components that the views share.
import { html, useEffect, useRef, useState } from './lib.js';

const numbers = new Intl.NumberFormat('en');
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });
const day = new Intl.DateTimeFormat('en', { dateStyle: 'medium', timeStyle: 'short' });
const relative = new Intl.RelativeTimeFormat('en', { numeric: 'auto' });

export const count = (value) => (value === undefined || value === null ? '–' : numbers.format(value));
export const brief = (value) => (value === undefined || value === null ? '–' : short.format(value));
export const when = (iso) => (iso ? day.format(new Date(iso)) : 'never');
export const label = (text) => String(text).replaceAll('_', ' ');
export const bytes = (value) => (value === undefined || value === null ? '–'
  : `${short.format(value / 1073741824)} GiB`);
export const shortId = (id) => (id && id.length > 12 ? `…${id.slice(-6)}` : id);

export function ago(iso, now = Date.now()) {
  if (!iso) return '–';
  const seconds = Math.round((new Date(iso) - now) / 1000);
  const steps = [['day', 86400], ['hour', 3600], ['minute', 60]];
  const [unit, size] = steps.find(([, length]) => Math.abs(seconds) >= length) || ['second', 1];
  return Math.abs(seconds) < 5 ? 'just now' : relative.format(Math.round(seconds / size), unit);
}

/** The time left until a moment, as 1:05 or 2 h. */
export function until(iso, now) {
  const seconds = Math.max(0, Math.round((new Date(iso) - now) / 1000));
  if (seconds >= 7200) return `${Math.round(seconds / 3600)} h`;
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, '0')}`;
}

export const Time = ({ at }) => html`<time datetime=${at} title=${when(at)}>${ago(at)}</time>`;
export const Badge = ({ kind = '', children, title }) => html`<span class="badge" data-kind=${kind} title=${title}>
  ${children}</span>`;
export const Empty = ({ title, children }) => html`<div class="empty"><strong>${title}</strong><p>${children}</p>
  </div>`;

/** Shows an error, if any. */
export function Trouble({ error, retry }) {
  if (!error) return null;
  return html`<div class="trouble" role="alert">
    <div><strong>${error.message}</strong>${error.hint && html`<div class="quiet">${error.hint}</div>`}</div>
    ${retry && html`<button onClick=${retry}>Retry</button>`}
  </div>`;
}

/** A notice that an answer is incomplete. */
export const Partial = ({ data }) => (data?.partial ? html`<p class="notice" role="status">Incomplete: ${data.reason}
  </p>` : null);

export const Card = ({ title, aside, children, className = '' }) => html`<section class="card ${className}">
  ${title && html`<header><h2>${title}</h2>${aside}</header>`}
  ${children}
</section>`;

export const Stat = ({ name, value, note, tone = '' }) => html`<div class="stat ${tone}">
  <div class="name">${name}</div><div class="value">${value}</div><div class="note">${note}</div>
</div>`;

/** A share between 0 and 1. */
export function Meter({ value, label: name, tone = '' }) {
  const share = Math.max(0, Math.min(1, value || 0));
  return html`<div class="meter ${tone}" role="meter" aria-label=${name} aria-valuemin="0" aria-valuemax="1"
    aria-valuenow=${share.toFixed(2)}>
    <div class="fill" style=${{ width: `${share * 100}%` }}></div>
  </div>`;
}

/** A dialog. Escape or a click outside closes it. */
export function Dialog({ title, onClose, children, wide }) {
  const ref = useRef();
  useEffect(() => {
    const before = document.activeElement;
    ref.current.showModal();
    return () => before?.focus?.();
  }, []);
  const beside = (event) => { if (event.target === ref.current) onClose(); };
  return html`<dialog ref=${ref} class=${wide ? 'wide' : ''} aria-label=${title}
    onCancel=${(event) => { event.preventDefault(); onClose(); }} onMouseDown=${beside}>
    <div class="inside">
      <header><h2>${title}</h2><button class="plain" aria-label="Close" onClick=${onClose}>✕</button></header>
      ${children}
    </div>
  </dialog>`;
}

/** Asks for confirmation. */
export function Confirm({ title, children, action, onConfirm, onClose }) {
  const [state, setState] = useState({});
  const go = async () => {
    setState({ busy: true });
    try { await onConfirm(); } catch (error) { setState({ error }); }
  };
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <div class="body">${children}<${Trouble} error=${state.error} /></div>
    <footer><button onClick=${onClose}>Cancel</button>
      <button class="danger" disabled=${state.busy} onClick=${go}>${action}</button></footer>
  </${Dialog}>`;
}

const notices = new Set();
/** Shows a notice for a few seconds. */
export const notify = (text) => notices.forEach((each) => each(text));

export function Notices() {
  const [shown, setShown] = useState([]);
  useEffect(() => {
    const add = (text) => {
      const notice = { text };
      setShown((old) => [...old, notice]);
      setTimeout(() => setShown((old) => old.filter((each) => each !== notice)), 4000);
    };
    notices.add(add);
    return () => notices.delete(add);
  }, []);
  return html`<div class="notices" role="status" aria-live="polite">
    ${shown.map((each) => html`<div>${each.text}</div>`)}</div>`;
}

/** A labelled field. */
export const Field = ({ name, children, hint }) => html`<label class="field"><span>${name}</span>${children}
  ${hint && html`<small>${hint}</small>`}</label>`;

/** A group of checkboxes. */
export function Chips({ name, options, chosen, onChange }) {
  const flip = (option) => onChange(chosen.includes(option) ? chosen.filter((each) => each !== option)
    : [...chosen, option]);
  return html`<fieldset class="chips"><legend>${name}</legend>${options.map((option) => html`<label key=${option}>
    <input type="checkbox" checked=${chosen.includes(option)} onChange=${() => flip(option)} /><span>${label(option)}
      </span>
  </label>`)}</fieldset>`;
}

export const TYPES = ['conversation', 'code', 'document', 'task', 'context', 'embedding', 'search_result',
  'system_state'];
export const PRIORITIES = ['critical', 'high', 'medium', 'low', 'archive'];
export const VISIBILITIES = ['private', 'shared', 'public'];
/** Parses a comma-separated list. */
export const list = (text) => String(text || '').split(',').map((part) => part.trim()).filter(Boolean);
