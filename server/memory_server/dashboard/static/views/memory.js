// One memory: read, edit, share or delete it.
import { html, useEffect, useState } from '../lib.js';
import { call } from '../api.js';
import {
  Badge, Confirm, Dialog, Field, PRIORITIES, Trouble, VISIBILITIES, label, list, notify,
  when,
} from '../parts.js';

function Facts({ answer }) {
  const { memory } = answer;
  const rows = [
    ['writer', memory.writer], ['trust', memory.trust], ['granted by', memory.granted_by?.join(', ')],
    ['context', memory.context],
    ['source', memory.source], ['occurred', when(memory.occurred_at)], ['stored', when(memory.created_at)],
    ['changed', memory.rev > 1 && when(memory.updated_at)],
    ['expires', when(memory.expires_at)], ['revision', memory.rev], ['chunks', memory.pieces > 1 && memory.pieces],
    ['vector', memory.vector],
    ['read', `${answer.access_count} times`], ['id', memory.memory_id],
  ];
  return html`<dl class="facts">${rows.filter(([, value]) => value).map(([name, value]) => html`<dt>${name}</dt>
    <dd>${value}</dd>`)}</dl>
    ${memory.metadata && html`<details><summary>Metadata</summary><pre>${JSON.stringify(memory.metadata, null, 2)}</pre>
      </details>`}`;
}

function Edit({ memory, onDone, onCancel }) {
  const [form, setForm] = useState({
    content: memory.content, priority: memory.priority, visibility: memory.visibility,
    tags: (memory.tags || []).join(', '), context: memory.context || '',
  });
  const [state, setState] = useState({});
  const field = (name) => ({ value: form[name], onInput: (event) => setForm({ ...form, [name]: event.target.value }) });
  const save = async (event) => {
    event.preventDefault();
    setState({ busy: true });
    const tags = list(form.tags);
    const args = { memory_id: memory.memory_id, expected_rev: memory.rev };
    for (const name of ['content', 'priority', 'visibility']) if (form[name] !== memory[name]) args[name] = form[name];
    if (tags.join() !== (memory.tags || []).join()) args.tags = tags;
    if (form.context !== (memory.context || '')) args.context = form.context; // an empty context removes it
    try {
      await call('update_memory', args);
      notify('Saved.');
      onDone();
    } catch (error) { setState({ error }); }
  };
  return html`<form class="body" onSubmit=${save}>
    <${Field} name="Content"><textarea rows="8" required ...${field('content')}></textarea></${Field}>
    <div class="fields">
      <${Field} name="Priority"><select ...${field('priority')}>
        ${PRIORITIES.map((each) => html`<option>${each}</option>`)}</select></${Field}>
      <${Field} name="Visibility"><select ...${field('visibility')}>
        ${VISIBILITIES.map((each) => html`<option>${each}</option>`)}</select></${Field}>
      <${Field} name="Tags" hint="comma-separated"><input ...${field('tags')} /></${Field}>
      <${Field} name="Context"><input ...${field('context')} /></${Field}>
    </div>
    <${Trouble} error=${state.error} />
    <footer><button type="button" onClick=${onCancel}>Cancel</button>
      <button class="primary" disabled=${state.busy}>Save</button></footer>
  </form>`;
}

export const DAYS = [['', 'until revoked'], [3600, 'for an hour'], [86400, 'for a day'], [604800, 'for a week'],
  [2592000, 'for 30 days']];

function Share({ memory, onDone, onCancel }) {
  const [form, setForm] = useState({ target: '', permission: 'read', seconds: '', note: '' });
  const [agents, setAgents] = useState([]);
  const [state, setState] = useState({});
  useEffect(() => { call('list_agents', { alive_only: false }).then((answer) => setAgents(answer.agents), () => {}); },
    []);
  const field = (name) => ({ value: form[name], onInput: (event) => setForm({ ...form, [name]: event.target.value }) });
  const go = async (event) => {
    event.preventDefault();
    setState({ busy: true });
    try {
      await call('share_context_with_agent', {
        target_agent: form.target, memory_ids: [memory.memory_id], permission: form.permission, note: form.note
          || undefined,
        expires_in_seconds: form.seconds ? Number(form.seconds) : undefined,
      });
      notify(`Shared with ${form.target}.`);
      onDone();
    } catch (error) { setState({ error }); }
  };
  return html`<form class="body" onSubmit=${go}>
    <div class="fields">
      <${Field} name="With agent"><input required list="agents" autocomplete="off" ...${field('target')} /></${Field}>
      <datalist id="agents">${agents.map((agent) => html`<option value=${agent.agent_id} />`)}</datalist>
      <${Field} name="Permission"><select ...${field('permission')}><option value="read">read</option>
        <option value="write">read and change</option></select></${Field}>
      <${Field} name="Duration"><select ...${field('seconds')}>
        ${DAYS.map(([value, name]) => html`<option value=${value}>${name}</option>`)}</select></${Field}>
      <${Field} name="Note"><input ...${field('note')} /></${Field}>
    </div>
    <${Trouble} error=${state.error} />
    <footer><button type="button" onClick=${onCancel}>Cancel</button>
      <button class="primary" disabled=${state.busy}>Share</button></footer>
  </form>`;
}

function Similar({ id, onOpen }) {
  const [state, setState] = useState({});
  useEffect(() => {
    setState({});
    call('find_similar_memories', { memory_id: id, limit: 5 }).then((answer) => setState({ hits: answer.hits }),
      (error) => setState({ error }));
  }, [id]);
  if (state.error || (state.hits && !state.hits.length)) return null;
  return html`<h3>Similar memories</h3>
    <ul class="alike">${state.hits?.map((hit) => html`<li key=${hit.memory.memory_id}>
    <span class="number">${hit.score.toFixed(2)}</span>
      <button class="content" onClick=${() => onOpen(hit.memory.memory_id)}>${hit.memory.content.slice(0, 160)}</button>
      </li>`)}</ul>`;
}

/** Shows a memory by its id. */
export function MemoryDialog({ id, session, onOpen, onClose, onChanged = () => {} }) {
  const [state, setState] = useState({});
  const [mode, setMode] = useState();
  const load = () => call('retrieve_memory', { memory_id: id }).then((answer) => setState({ answer }),
    (error) => setState({ error }));
  useEffect(() => { setMode(undefined); setState({}); load(); }, [id]);
  const { answer, error } = state;
  const memory = answer?.memory;
  const own = memory && ['own', 'received'].includes(memory.trust);
  const remove = async () => {
    const done = await call('clear_memory', { memory_ids: [id], confirm: true });
    notify(done.deleted ? 'Deleted.' : 'It was already deleted.');
    onChanged();
    onClose();
  };
  const done = () => { setMode(undefined); load(); onChanged(); };
  return html`<${Dialog} title=${memory ? `${label(memory.memory_type)} by ${memory.writer}` : 'Memory'}
    onClose=${onClose} wide>
    <${Trouble} error=${error} />
    ${!memory && !error && html`<p class="quiet body">Loading…</p>`}
    ${memory && mode === 'edit'
      && html`<${Edit} memory=${memory} onDone=${done} onCancel=${() => setMode(undefined)} />`}
    ${memory && mode === 'share'
      && html`<${Share} memory=${memory} onDone=${done} onCancel=${() => setMode(undefined)} />`}
    ${memory && (!mode || mode === 'delete') && html`<div class="body">
      <div class="whole">${memory.content}</div>
      <div class="about"><${Badge} kind=${memory.priority}>${memory.priority}</${Badge}><${Badge}>${memory.visibility}
        </${Badge}>${memory.tags?.map((tag) => html`<span class="tag">#${tag}</span>`)}</div>
      <${Facts} answer=${answer} />
      ${memory.vector === 'ready' && html`<${Similar} id=${id} onOpen=${onOpen} />`}
    </div>
    ${session.may.includes('write memories') && html`<footer>
      ${!own && html`<span class="quiet small gap">
        Written by ${memory.writer}. The grant decides what you may do.</span>`}
      <button onClick=${() => setMode('edit')}>Edit</button><button onClick=${() => setMode('share')}>Share</button>
      ${own && html`<button class="danger" onClick=${() => setMode('delete')}>Delete</button>`}
    </footer>`}`}
    ${mode === 'delete' && html`<${Confirm} title="Delete this memory?" action="Delete permanently" onConfirm=${remove}
      onClose=${() => setMode(undefined)}>
      <p>This cannot be undone.</p></${Confirm}>`}
  </${Dialog}>`;
}
