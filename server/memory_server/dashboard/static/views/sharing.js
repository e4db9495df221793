// Grants and offers: create, list and revoke them.
import { html, useState } from '../lib.js';
import { call } from '../api.js';
import {
  Badge, Card, Confirm, Empty, Field, Partial, TYPES, Time, Trouble, label, list, notify,
  when,
} from '../parts.js';
import { useTool } from '../data.js';
import { DAYS } from './memory.js';

/** What a grant covers, in words. */
export function covers(grant) {
  if (grant.context) return html`the context <b>${grant.context}</b>`;
  if (grant.tags?.length) return html`all memories tagged ${grant.tags.map((tag) => html`<span class="tag">#${tag}
    </span> `)}`;
  if (grant.memory_types?.length) return html`all memories of type <b>${grant.memory_types.map(label).join(', ')}</b>`;
  return html`${grant.transfer && 'all '}<b>${grant.memories}</b> ${grant.memories === 1 ? 'memory' : 'memories'}`;
}

function permission(grant) {
  if (grant.transfer) return 'transfer';
  return grant.permission === 'write' ? 'read and change' : 'read';
}

function Grant({ grant, session, onRevoke, onAnswer }) {
  const received = grant.to_agent === session.agent;
  const mine = session.may.includes('end grants')
    && (session.operator || received || grant.from_agent === session.agent);
  return html`<li class="grant">
    <div><b>${grant.from_agent}</b> <span aria-hidden="true">→</span><span class="sr">shares with</span> <b>
      ${grant.to_agent}</b>
      <${Badge} kind=${grant.permission === 'write' ? 'warn' : ''}>${permission(grant)}</${Badge}></div>
    <div>${covers(grant)}${grant.note && html`<div class="quiet small">“${grant.note}”</div>`}</div>
    ${grant.if_accepted && html`<div class="small">${grant.if_accepted}</div>`}
    ${grant.grown > 0 && html`<div class="quiet small">${grant.grown} chunks added by ${grant.to_agent}</div>`}
    <div class="quiet small">since <${Time} at=${grant.granted_at} />, ${grant.expires_at
      ? html`until ${when(grant.expires_at)}` : 'until revoked'}</div>
    ${received && onAnswer && html`<button class="primary" onClick=${() => onAnswer(grant, true)}
        aria-label=${`Accept the offer of ${grant.from_agent}`}>Accept</button>
      <button class="danger" onClick=${() => onAnswer(grant, false)}
        aria-label=${`Decline the offer of ${grant.from_agent}`}>Decline</button>`}
    ${mine && !(received && onAnswer) && html`<button class="danger" onClick=${() => onRevoke(grant)}
      aria-label=${`Revoke what ${grant.from_agent} shares with ${grant.to_agent}`}>Revoke</button>`}
  </li>`;
}

function Grants({ grants, ...rest }) {
  const byReader = Object.groupBy ? Object.groupBy(grants, (grant) => grant.to_agent) : { '': grants };
  return Object.entries(byReader).map(([reader, given]) => html`<div key=${reader}>
    ${reader && html`<h3>${reader} sees</h3>`}
      <ul class="grants">${given.map((grant) => html`<${Grant} key=${grant.id} grant=${grant} ...${rest} />`)}</ul>
      </div>`);
}

function NewGrant({ agents, onDone }) {
  const [form, setForm] = useState({ target: '', by: 'context', what: '', permission: 'read', seconds: '' });
  const [state, setState] = useState({});
  const field = (name) => ({ value: form[name], onInput: (event) => setForm({ ...form, [name]: event.target.value }) });
  const go = async (event) => {
    event.preventDefault();
    setState({ busy: true });
    const what = { context: { context: form.what }, tags: { tags: list(form.what) },
      types: { memory_types: list(form.what) } }[form.by];
    try {
      await call('share_context_with_agent', { target_agent: form.target, permission: form.permission,
        expires_in_seconds: form.seconds ? Number(form.seconds) : undefined, ...what });
      notify(`Shared with ${form.target}.`);
      setForm({ ...form, what: '' });
      setState({});
      onDone();
    } catch (error) { setState({ error }); }
  };
  return html`<form onSubmit=${go}><div class="fields">
      <${Field} name="With agent"><select required ...${field('target')}><option value="">choose…</option>
        ${agents.map((agent) => html`<option>${agent.agent_id}</option>`)}</select></${Field}>
      <${Field} name="Select by"><select ...${field('by')}><option value="context">a context</option>
        <option value="tags">tags</option><option value="types">types</option></select></${Field}>
      <${Field} name="Value" hint=${form.by === 'types' ? TYPES.join(', ') : form.by === 'tags' ? 'comma-separated'
        : 'session, thread or project'}><input required ...${field('what')} /></${Field}>
      <${Field} name="Permission"><select ...${field('permission')}><option value="read">read</option>
        <option value="write">read and change</option></select></${Field}>
      <${Field} name="Duration"><select ...${field('seconds')}>
        ${DAYS.map(([value, name]) => html`<option value=${value}>${name}</option>`)}</select></${Field}>
    </div><${Trouble} error=${state.error} /><button class="primary" disabled=${state.busy}>Share</button></form>`;
}

export default function Sharing({ session }) {
  const { data, error, reload } = useTool('dashboard_grants', {}, ['grant']);
  const agents = useTool('list_agents', { alive_only: false }, ['agent']);
  const [toRevoke, setToRevoke] = useState();
  const revoke = async () => {
    const answer = await call('revoke_shared_context', { grant_id: toRevoke.id });
    notify(`Revoked; ${answer.grants_ended} grants ended.`);
    setToRevoke(undefined);
    reload();
  };
  const [problem, setProblem] = useState();
  const answer = async (offer, accept) => {
    try {
      await call('answer_offer', { offer_id: offer.id, accept });
      notify(accept ? `Accepted the offer of ${offer.from_agent}.` : `Declined the offer of ${offer.from_agent}.`);
      setProblem(undefined);
    } catch (failure) { setProblem(failure); }
    reload();
  };
  const others = (agents.data?.agents || []).filter((agent) => agent.agent_id !== session.agent);
  return html`<${Trouble} error=${error} retry=${reload} /><${Partial} data=${data} />
    <${Card} title=${data?.whole ? 'All grants' : `Grants of ${session.agent}`}>
      ${data && !data.grants.length
        && html`<${Empty} title="Nothing is shared">
          Only owners read private memories, and all agents read public ones. Grants let an agent read more.
        </${Empty}>`}
      ${data && html`<${Grants} grants=${data.grants} session=${session} onRevoke=${setToRevoke} />`}
    </${Card}>
    ${data?.offers.length > 0
      && html`<${Card} title="Pending offers">
      <p class="quiet small">An offer takes effect when its receiver accepts it.</p><${Trouble} error=${problem} />
      <${Grants} grants=${data.offers} session=${session} onRevoke=${setToRevoke} onAnswer=${answer} /></${Card}>`}
    ${session.may.includes('share memories')
      && html`<${Card} title=${`Share memories of ${session.agent}`}>${others.length
    ? html`<${NewGrant} agents=${others} onDone=${reload} />`
      : html`<p class="quiet">No other agent is registered.</p>`}</${Card}>`}
    ${toRevoke && html`<${Confirm} title="Revoke this grant?" action="Revoke" onConfirm=${revoke}
      onClose=${() => setToRevoke(undefined)}>
      <p><b>${toRevoke.to_agent}</b> immediately loses access to ${covers(toRevoke)} of <b>${toRevoke.from_agent}
        </b>. Agents that received it through this grant lose it too.</p></${Confirm}>`}`;
}
